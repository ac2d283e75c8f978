//! Each promise of docs/semantics.md names tests that exist.

use std::fs;
use std::path::Path;

#[test]
fn each_promise_is_shown_by_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/semantics.md")).unwrap();
    let mut code = String::new();
    let mut folders = vec![root.join("src"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                code += &fs::read_to_string(path).unwrap();
            }
        }
    }
    let (promises, _) = text.split_once("## Not promised").unwrap();
    let is_test = |word: &&str| word.len() > 15 && word.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let mut shown = 0;
    for promise in promises.split("\n- ").skip(1) {
        let tests: Vec<&str> = promise.split('`').skip(1).step_by(2).filter(is_test).collect();
        assert!(!tests.is_empty(), "nothing shows: {promise}");
        for test in &tests {
            assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
        }
        shown += 1;
    }
    assert!(shown > 30, "only {shown} promises were found");
}
