//! Patterns of COLLECT: `*` and `?` within a component of a path, `**` for any number of folders.

use std::collections::BTreeSet;

/// Patterns, each as its components.
pub struct Globs(Vec<Vec<Vec<u8>>>);

/// Which patterns a path can still match, and how many components of each it has matched.
pub type Places = BTreeSet<(usize, usize)>;

impl Globs {
    /// The patterns, which are relative to the folder where the search begins; and the place before its first component.
    pub fn new(patterns: &[&[u8]]) -> (Globs, Places) {
        let globs: Vec<Vec<Vec<u8>>> =
            patterns.iter().map(|pattern| pattern.split(|&byte| byte == b'/').map(<[u8]>::to_vec).collect()).collect();
        let places = (0..globs.len()).map(|glob| (glob, 0)).collect();
        (Globs(globs), places)
    }

    /// Where a path is after one more component; empty if nothing beneath it can match.
    pub fn enter(&self, places: &Places, name: &[u8]) -> Places {
        let mut entered = Places::new();
        for &(glob, first) in places {
            let mut at = first;
            while let Some(part) = self.0[glob].get(at) {
                if part != b"**" {
                    if matches(part, name) {
                        entered.insert((glob, at + 1));
                    }
                    break;
                }
                if !name.starts_with(b".") {
                    entered.insert((glob, at));
                }
                // It may stand for no folder, too.
                at += 1;
            }
        }
        entered
    }

    /// Whether a path that is there has matched a pattern to its end.
    pub fn complete(&self, places: &Places) -> bool {
        places.iter().any(|&(glob, at)| self.0[glob][at..].iter().all(|part| part == b"**"))
    }
}

/// Whether a component matches. A dot at its front is matched only by one, as in a shell.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    if name.first() == Some(&b'.') && pattern.first() != Some(&b'.') {
        return false;
    }
    let (mut p, mut n) = (0, 0);
    // Behind the last `*`, and how much of the name that has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                p += 1;
                star = Some((p, n));
            }
            Some(b'?') => {
                p += 1;
                n = after_character(name, n);
            }
            Some(&byte) if byte == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((behind, taken)) => {
                    star = Some((behind, taken + 1));
                    (p, n) = (behind, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&byte| byte == b'*')
}

/// Where the next character of UTF-8 begins.
fn after_character(text: &[u8], at: usize) -> usize {
    let rest = text[at + 1..].iter().take_while(|&&byte| byte & 0xC0 == 0x80);
    at + 1 + rest.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pattern: &str, path: &str) -> bool {
        let (globs, start) = Globs::new(&[pattern.as_bytes()]);
        let places = path.split('/').fold(start, |places, name| globs.enter(&places, name.as_bytes()));
        globs.complete(&places)
    }

    #[test]
    fn paths_that_match() {
        for (pattern, path) in [
            ("a", "a"),
            ("*.png", "plot.png"),
            ("*", "a"),
            ("a*b*c", "axxbyybzc"),
            ("gr?n", "grün"),
            ("out/*", "out/a"),
            ("**", "a"),
            ("**", "a/b/c"),
            ("**/a", "a"),
            ("**/a", "x/y/a"),
            ("x/**/a", "x/a"),
            ("x/**/a", "x/y/z/a"),
            ("**/**/a", "a"),
            ("x/**", "x/y/z"),
            ("x/**", "x"),
            (".config/*", ".config/a"),
            (".*", ".a"),
        ] {
            assert!(found(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn paths_that_do_not() {
        for (pattern, path) in [
            ("a", "b"),
            ("a", "a/b"),
            ("a/b", "a"),
            ("*", "a/b"),
            ("*.png", "png"),
            ("?", "ab"),
            ("a*b", "a"),
            ("*", ".hidden"),
            ("?a", ".a"),
            ("**", ".cache/a"),
            ("**/a", "x/.y/a"),
            ("**/a", "b"),
            ("", "a"),
        ] {
            assert!(!found(pattern, path), "{pattern} {path}");
        }
    }

    #[test]
    fn a_pattern_of_many_stars_takes_no_long_time() {
        let pattern = "*a".repeat(100) + "b";
        assert!(!found(&pattern, &"a".repeat(255)));
    }

    #[test]
    fn a_folder_that_no_pattern_can_be_in_is_not_entered() {
        let (globs, start) = Globs::new(&[b"out/*.png", b"log"]);
        assert!(globs.enter(&start, b"target").is_empty());
        assert!(!globs.complete(&globs.enter(&start, b"out")));
        assert!(globs.complete(&globs.enter(&start, b"log")));
    }
}
