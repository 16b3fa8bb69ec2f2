"""Twenty small Go programs that a pruned image must still build, compiling nothing but themselves:
name -> source and what it prints.
"""
# ruff: noqa: E501


def _main(imports: str, body: str, before: str = "") -> str:
    lines = "".join(f'import "{name}"\n' for name in imports.split())
    return f"package main\n\n{lines}\n{before}\nfunc main() {{\n{body}\n}}\n"


SNIPPETS: dict[str, tuple[str, str]] = {
    "hello": (_main("fmt", 'fmt.Println("hello")'), "hello\n"),
    "maps": (
        _main("fmt strings", 'n := map[string]int{}; for _, w := range strings.Fields("a b a") { n[w]++ }; fmt.Println(n)'),
        "map[a:2 b:1]\n",
    ),
    "sorting": (
        _main("fmt slices sort", "s := []int{3, 1, 2}; slices.Sort(s); sort.Sort(sort.Reverse(sort.IntSlice(s))); fmt.Println(s)"),
        "[3 2 1]\n",
    ),
    "containers": (
        _main(
            "container/heap container/list fmt sort",
            "q := &H{sort.IntSlice{3, 1, 2}}; heap.Init(q); l := list.New(); l.PushBack(heap.Pop(q)); fmt.Println(l.Front().Value)",
            "type H struct{ sort.IntSlice }\nfunc (h *H) Push(x any) { h.IntSlice = append(h.IntSlice, x.(int)) }\nfunc (h *H) Pop() any { n := len(h.IntSlice) - 1; x := h.IntSlice[n]; h.IntSlice = h.IntSlice[:n]; return x }",
        ),
        "1\n",
    ),
    "goroutines": (
        _main(
            "fmt sync sync/atomic",
            "var n atomic.Int64; var w sync.WaitGroup; for i := range 50 { w.Add(1); go func() { defer w.Done(); n.Add(int64(i)) }() }; w.Wait(); fmt.Println(n.Load())",
        ),
        "1225\n",
    ),
    "channels": (
        _main(
            "context fmt time",
            "c := make(chan int); go func() { defer close(c); for i := range 3 { c <- i } }(); x, f := context.WithTimeout(context.Background(), time.Minute); defer f(); for v := range c { fmt.Print(v) }; fmt.Println(x.Err())",
        ),
        "012<nil>\n",
    ),
    "files": (
        _main(
            "fmt os path/filepath",
            'p := filepath.Join(os.TempDir(), "x"); os.WriteFile(p, []byte("in a file"), 0o600); b, err := os.ReadFile(p); fmt.Println(string(b), err)',
        ),
        "in a file <nil>\n",
    ),
    "network": (
        _main(
            "bufio fmt net",
            'l, err := net.Listen("tcp", "127.0.0.1:0"); if err != nil { panic(err) }; go func() { c, _ := l.Accept(); fmt.Fprintln(c, "over the wire"); c.Close() }(); c, _ := net.Dial("tcp", l.Addr().String()); s, _ := bufio.NewReader(c).ReadString(10); fmt.Print(s)',
        ),
        "over the wire\n",
    ),
    "http": (
        _main(
            "fmt io net/http net/http/httptest",
            's := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.URL.Path) })); defer s.Close(); a, err := http.Get(s.URL + "/p"); if err != nil { panic(err) }; b, _ := io.ReadAll(a.Body); fmt.Println(string(b))',
        ),
        "/p\n",
    ),
    "generics": (
        _main(
            "cmp fmt",
            'fmt.Println(most(1, 3, 2), most("a", "b"))',
            "func most[T cmp.Ordered](first T, rest ...T) T { for _, x := range rest { first = max(first, x) }; return first }",
        ),
        "3 b\n",
    ),
    "iterators": (
        _main(
            "fmt iter",
            "for x := range count(3) { fmt.Print(x) }",
            "func count(n int) iter.Seq[int] { return func(yield func(int) bool) { for i := 0; i < n && yield(i); i++ {} } }",
        ),
        "012",
    ),
    "json": (
        _main(
            "encoding/json fmt", 'var p struct{ X int `json:"x"` }; err := json.Unmarshal([]byte(`{"x": 4}`), &p); fmt.Println(p.X, err)'
        ),
        "4 <nil>\n",
    ),
    "text": (
        _main(
            "fmt regexp strings text/template",
            'b := &strings.Builder{}; template.Must(template.New("").Parse("{{.}}!")).Execute(b, regexp.MustCompile("l+").ReplaceAllString("hello", "L")); fmt.Println(b)',
        ),
        "heLo!\n",
    ),
    "big numbers": (
        _main("fmt math math/big", "fmt.Println(new(big.Int).Exp(big.NewInt(2), big.NewInt(70), nil), math.Round(math.Pi*100))"),
        "1180591620717411303424 314\n",
    ),
    "hashes": (
        _main(
            "compress/gzip crypto/sha256 fmt bytes io",
            'b := &bytes.Buffer{}; z := gzip.NewWriter(b); z.Write([]byte("x")); z.Close(); r, _ := gzip.NewReader(b); d, _ := io.ReadAll(r); fmt.Printf("%.2x\\n", sha256.Sum256(d))',
        ),
        "2d71\n",
    ),
    "time": (
        _main(
            "fmt time",
            "t := time.Date(2024, 2, 28, 23, 0, 0, 0, time.UTC).Add(2 * time.Hour); fmt.Println(t.Format(time.DateOnly), t.Weekday())",
        ),
        "2024-02-29 Thursday\n",
    ),
    "panics": (
        _main(
            "errors fmt",
            'defer func() { fmt.Println("caught", recover()) }(); var e error = fmt.Errorf("outer: %w", errors.ErrUnsupported); if errors.Is(e, errors.ErrUnsupported) { panic(e) }',
        ),
        "caught outer: unsupported operation\n",
    ),
    "reflection": (
        _main(
            "fmt reflect unsafe", "type p struct{ A, B int8 }; t := reflect.TypeOf(p{}); fmt.Println(t.Field(1).Name, unsafe.Sizeof(p{}))"
        ),
        "B 2\n",
    ),
    "a test": (
        _main(
            "fmt testing",
            'fmt.Println(testing.AllocsPerRun(1, func() {}), testing.RunTests(func(a, b string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "T", F: func(t *testing.T) { t.Log("ran") }}}))',
            "func init() { testing.Init() }",
        ),
        "0 true\n",
    ),
    "processes": (
        _main(
            "fmt os/exec log/slog os",
            'slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil))); b, err := exec.Command("echo", "child").Output(); fmt.Print(string(b)); fmt.Println(err)',
        ),
        "child\n<nil>\n",
    ),
}
