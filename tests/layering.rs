//! The layers of docs/design.md hold: a module names only its own layer or a lower one.

use std::fs;
use std::path::{Path, PathBuf};

/// From low to high.
const LAYERS: [&[&str]; 4] =
    [&["error", "oci", "index"], &["registry", "blob", "cache"], &["mount", "transfer"], &["fuse", "cli"]];
/// Crates that only one module may use, and what must not appear in the core.
const OWNERS: [(&str, &str); 2] = [("clap", "cli"), ("fuser", "fuse")];
const NOT_IN_CORE: [&str; 5] = ["tokio", "std::fs", "std::time::Instant", "std::thread", "std::net::TcpStream"];

#[test]
fn a_module_uses_its_own_or_a_lower_layer_only() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (module, file, code) in sources() {
        let own = layer_of(&module);
        assert!(!code.contains("crate::{"), "{}: one `use` a module, so that this test sees it", file.display());
        for other in code.split("crate::").skip(1) {
            let other: String = other.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(layer) = LAYERS.iter().position(|layer| layer.contains(&other.as_str())) {
                seen += 1;
                if layer > own {
                    wrong.push(format!("{} uses {other}", file.display()));
                }
            }
        }
        for (name, owner) in OWNERS {
            if module != owner && code.contains(&format!("{name}::")) {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
        for name in NOT_IN_CORE.iter().filter(|name| own == 0 && code.contains(*name)) {
            wrong.push(format!("{} uses {name}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 50, "the test sees only {seen} uses");
}

#[test]
fn every_module_belongs_to_a_layer_and_says_what_it_is() {
    for entry in fs::read_dir(src()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if !matches!(name.as_str(), "main" | "lib") {
            layer_of(&name);
        }
        if path.is_dir() {
            let text = fs::read_to_string(path.join("mod.rs")).unwrap();
            assert!(text.starts_with("//! "), "{name}/mod.rs does not say what it is");
        }
    }
}

#[test]
fn files_stay_short() {
    for (_, file, code) in sources() {
        assert!(code.lines().count() <= 420, "{} is too long: split it by meaning", file.display());
    }
}

fn layer_of(module: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&module)).unwrap_or_else(|| panic!("{module} is in no layer"))
}

/// Each file below `src`, with its module and its code without tests.
fn sources() -> Vec<(String, PathBuf, String)> {
    let mut files = Vec::new();
    let mut folders = vec![src()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let test_file = |path: &Path| {
        path.file_stem().is_some_and(|name| name == "tests") || path.components().any(|c| c.as_os_str() == "tests")
    };
    files
        .into_iter()
        .filter(|path| !test_file(path.strip_prefix(src()).unwrap()))
        .filter_map(|path| {
            let inside = path.strip_prefix(src()).unwrap();
            let module =
                inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
            let code = fs::read_to_string(&path).unwrap();
            let code = code.split("#[cfg(test)]\nmod ").next().unwrap().to_owned();
            (!matches!(module.as_str(), "main" | "lib")).then_some((module, path, code))
        })
        .collect()
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}
