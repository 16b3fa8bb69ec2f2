# The files of tests whose names end with this, js or ts, as Jest and `node --test` find them; of none the main file,
# and without that an error.
list() {
    for file in "$1"*; do
        case $file in
        node_modules | */node_modules) continue ;;
        *.test.$x | *.test.[cm]$x | *.spec.$x | *.spec.[cm]$x | *[-_]test.$x | *[-_]test.[cm]$x) ;;
        *.test.[jt]sx | *.spec.[jt]sx | __tests__/*.[jt]sx | */__tests__/*.[jt]sx) ;;
        test.$x | test.[cm]$x | test/*.$x | test/*.[cm]$x | tests/*.$x | tests/*.[cm]$x) ;;
        __tests__/*.$x | __tests__/*.[cm]$x | */__tests__/*.$x | */__tests__/*.[cm]$x) ;;
        *) [ ! -d "$file" ] || [ -L "$file" ] || list "$file/"; continue ;;
        esac
        [ ! -d "$file" ] || continue
        case $x$file in js*.?sx) echo "$file: elements take TypeScript's image: send it in the language typescript" >&2; exit 1 ;; esac
        none=
        printf '%s\n' "$file"
    done
}
x=$1 none=1
list ''
for file in "main.m$x" "main.c$x" "main.$x"; do
    [ -z "$none" ] || [ ! -e "$file" ] || { printf '%s\n' "$file"; none=; }
done
[ -n "$none" ] || exit 0
echo "there are no tests: they are in files *.test.$x, *.spec.$x or in folders test or __tests__" >&2
case $x in js) x=ts language=typescript ;; *) x=js language=javascript ;; esac
[ -z "$(list '')" ] || echo "there are some of the language $language: send it as that" >&2
exit 1
