//! `eo-mount ls` and `eo-mount index`: the same dataset, without a mount.

use std::fs;
use std::process::Command;
use std::time::Duration;

use eo_mount_testing::fixtures::{TarFormat, everything_tar, patch_tar};
use eo_mount_testing::{ALWAYS, Artifact, EoMount, Fault, Finished, Home, Matcher, ScriptedRegistry, run};

const PROGRAM: &str = env!("CARGO_BIN_EXE_eo-mount");

struct Dataset {
    registry: ScriptedRegistry,
    reference: String,
    digests: Vec<String>,
    home: Home,
}

impl Dataset {
    fn new() -> Self {
        let registry = ScriptedRegistry::start();
        let artifact = Artifact::new()
            .config("{}", "application/json")
            .tar("10000.tar", patch_tar(10000, 32))
            .tar("10001.tar", patch_tar(10001, 32))
            .tar("all.tar", everything_tar(TarFormat::Posix("1.0")))
            .layer(Some("README.md"), "text/markdown", "# read me\n");
        artifact.push(&registry, "pastis", "sample");
        let digests = artifact.layers().into_iter().map(|layer| layer.digest).collect();
        Self { reference: registry.reference("pastis:sample"), registry, digests, home: Home::new() }
    }

    fn call(&self, arguments: &[&str]) -> Finished {
        EoMount::bare(PROGRAM).home(&self.home).args(arguments).output()
    }

    /// The verb and its options, then the reference, then the rest.
    fn verb(&self, options: &[&str], rest: &[&str]) -> Finished {
        self.call(&[options, &[self.reference.as_str()], rest].concat())
    }

    fn text(&self, options: &[&str], rest: &[&str]) -> String {
        self.verb(options, rest).expect_success("eo-mount").text()
    }

    fn indexes(&self) -> usize {
        fs::read_dir(self.home.cache().join("eo-mount/indexes/sha256")).into_iter().flatten().count()
    }
}

#[test]
fn names_one_a_line_as_ls_prints_them() {
    let dataset = Dataset::new();
    assert_eq!(dataset.text(&["ls"], &[]), "10000\n10001\nREADME.md\nall\nconfig.json\n");
    assert_eq!(dataset.registry.blob_requests(), 0, "the root needs no layer");
    assert_eq!(dataset.text(&["ls"], &["10000/ANNOTATIONS"]), "ParcelIDs_10000.npy\nTARGET_10000.npy\n");
    assert_eq!(
        dataset.text(&["ls"], &["/10000/./DATA_S2/../ANNOTATIONS/"]),
        dataset.text(&["ls"], &["10000/ANNOTATIONS"])
    );
    assert_eq!(dataset.text(&["ls"], &["10000/DATA_S2/S2_10000.npy"]), "10000/DATA_S2/S2_10000.npy\n");
    let odd = dataset.verb(&["ls"], &["all"]).expect_success("ls").stdout;
    for name in [&b"n\xe4me\n"[..], b"with\nnewline\n", b" space \n"] {
        assert!(odd.windows(name.len()).any(|window| window == name), "{}", String::from_utf8_lossy(name));
    }
}

#[test]
fn a_glob_lists_what_it_matches() {
    let dataset = Dataset::new();
    assert_eq!(dataset.text(&["ls"], &["1000?"]), "10000\n10001\n");
    let found = dataset.text(&["ls"], &["**/TARGET*.npy"]);
    assert_eq!(found, "10000/ANNOTATIONS/TARGET_10000.npy\n10001/ANNOTATIONS/TARGET_10001.npy\n");
    let below = dataset.text(&["ls", "-R"], &["10000/ANNOT*"]);
    let listed = "10000/ANNOTATIONS:\nParcelIDs_10000.npy\nTARGET_10000.npy\n";
    assert_eq!(below, format!("10000/ANNOTATIONS\n\n{listed}"));
    assert_eq!(dataset.verb(&["ls"], &["*.none"]).code, 1);
}

/// The verb, a mount, and `ls` of that mount agree.
#[test]
fn recursive_listings_are_those_of_ls_in_a_mount() {
    let dataset = Dataset::new();
    let mounted = EoMount::new(PROGRAM, &dataset.reference).mount();
    let mut ls = Command::new("ls");
    ls.current_dir(mounted.path()).args(["-R", "-1"]).env("LC_ALL", "C").env("QUOTING_STYLE", "literal");
    let expected = run(&mut ls, Duration::from_secs(30)).expect_success("ls").text();
    let ours = dataset.text(&["ls", "-R"], &[]);
    let headings = ours.replace("\n\n", "\n\n./");
    assert_eq!(headings, expected);
    let mut ls = Command::new("ls");
    ls.current_dir(mounted.path()).args(["-1", "-A", "all"]).env("LC_ALL", "C").env("QUOTING_STYLE", "literal");
    let expected = run(&mut ls, Duration::from_secs(30)).expect_success("ls").stdout;
    assert_eq!(dataset.verb(&["ls", "-a"], &["all"]).stdout, expected);
}

#[test]
fn the_long_form_has_a_line_an_entry() {
    let dataset = Dataset::new();
    let text = dataset.text(&["ls", "-l"], &["10000/ANNOTATIONS"]);
    let fields: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(fields.len(), 2);
    assert_eq!((fields[0][0], fields[0][1], fields[0][6]), ("-r--r--r--", "1", "ParcelIDs_10000.npy"));
    assert_eq!(fields[0][4], "256");
    assert!(fields[0][5].starts_with("2021-12-08T") && fields[0][5].ends_with('Z'), "{}", fields[0][5]);
    let all = dataset.verb(&["ls", "-l"], &["all"]).expect_success("ls").text();
    for part in ["lr-xr-xr-x", "symlink -> plain\n", "pr--r--r--", "1969-12-31T00:00:00Z old\n", "cr--"] {
        assert!(all.contains(part), "{part}\n{all}");
    }
}

#[test]
fn json_is_one_object_a_line() {
    let dataset = Dataset::new();
    let text = dataset.text(&["ls", "--json", "-R"], &["all"]);
    let entries: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let entry =
        |path: &str| entries.iter().find(|entry| entry["path"] == path).unwrap_or_else(|| panic!("no {path}\n{text}"));
    let plain = entry("all/plain");
    assert_eq!((&plain["kind"], &plain["size"], &plain["name"]), (&"file".into(), &10_000.into(), &"plain".into()));
    assert_eq!((&plain["mode"], &plain["nlink"]), (&"0551".into(), &2.into()));
    assert_eq!(plain["mtime"], "2017-07-14T02:40:00.123456789Z");
    assert_eq!(plain["layer"], dataset.digests[2].as_str());
    assert_eq!(
        (&entry("all/climbing")["kind"], &entry("all/climbing")["link"]),
        (&"symlink".into(), &"../../etc/passwd".into())
    );
    assert_eq!(entry("all/directory/deeper/file")["size"], 513);
    assert_eq!(entry("all/n\u{fffd}me")["path_hex"], "616c6c2f6ee46d65");
    let root = dataset.text(&["ls", "--json"], &[]);
    assert!(root.contains(r#""path":"config.json","name":"config.json","kind":"file","size":2"#), "{root}");
}

#[test]
fn a_path_that_is_none_is_one_plain_line() {
    let dataset = Dataset::new();
    for (path, cause) in [
        ("nowhere", "nowhere: no such file or directory in the dataset"),
        ("10000/nowhere/x", "no such file or directory"),
        ("README.md/x", "not a directory on the way"),
        ("10000/DATA_S2/S2_10000.npy/", "not a directory"),
        ("all/long-symlink/x", "no such file"),
        ("all/climbing/x", "no such file"),
        ("x\x1b[2J", "x [2J: no such file"),
    ] {
        let said = dataset.verb(&["ls"], &[path]);
        assert_eq!((said.code, said.stdout.len(), said.stderr.lines().count()), (1, 0, 1), "{path}: {}", said.stderr);
        assert!(said.stderr.starts_with("eo-mount: ") && said.stderr.contains(cause), "{path}: {}", said.stderr);
    }
    assert_eq!(dataset.text(&["ls"], &["../../10000/../README.md"]), "../../10000/../README.md\n");
    assert_eq!(dataset.call(&["ls"]).code, 2);
    let swapped = dataset.call(&["-v", "ls", &dataset.reference]);
    assert_eq!(swapped.code, 2);
    assert!(swapped.stderr.contains("a verb comes first"), "{}", swapped.stderr);
}

#[test]
fn a_broken_layer_leaves_the_others_listed() {
    let dataset = Dataset::new();
    dataset.registry.fault(Matcher::blob(&dataset.digests[0]), Fault::status(404), ALWAYS);
    let said = dataset.verb(&["ls", "-R"], &[]);
    assert_eq!(said.code, 1);
    assert!(said.text().contains("10001/ANNOTATIONS:\n"), "{}", said.text());
    assert!(said.stderr.contains("10000: ") && said.stderr.contains("does not have it"), "{}", said.stderr);
    assert_eq!(dataset.verb(&["ls"], &["10000"]).code, 1);
}

/// What `script` makes of the verb is what a terminal gets.
#[test]
fn a_terminal_gets_no_control_characters() {
    let dataset = Dataset::new();
    let mut script = Command::new("script");
    let line = format!("'{PROGRAM}' ls --cache-dir '{}' {} all", dataset.home.cache().display(), dataset.reference);
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
    let text = run(&mut script, Duration::from_secs(30)).expect_success("script (apt-get install bsdutils)").text();
    assert!(text.contains("with\\nnewline\r\n") && text.contains("n\\xe4me\r\n"), "{text}");
}

#[test]
fn index_makes_later_looks_free() {
    let dataset = Dataset::new();
    let said = dataset.verb(&["index"], &[]).expect_success("index");
    assert!(said.text().starts_with("3 layers, "), "{}", said.text());
    assert!(said.text().contains(" requests, ") && said.text().lines().count() == 1, "{}", said.text());
    assert_eq!((said.stderr.as_str(), dataset.indexes()), ("", 3));
    dataset.registry.reset();
    dataset.text(&["ls", "-R"], &[]);
    let again = dataset.text(&["index", "--json"], &[]);
    assert_eq!(dataset.registry.blob_requests(), 0);
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert_eq!((&again["layers"], again["failed"].as_array().unwrap().len()), (&3.into(), 0));
    assert!(again["entries"].as_u64().unwrap() > 30);
}

#[test]
fn index_takes_layers_by_name_or_digest() {
    let dataset = Dataset::new();
    dataset.text(&["index"], &["10001"]);
    assert_eq!(dataset.indexes(), 1);
    dataset.text(&["index"], &[&dataset.digests[0], "10001"]);
    assert_eq!(dataset.indexes(), 2);
    let short = &dataset.digests[2]["sha256:".len()..][..12];
    dataset.text(&["index"], &[short]);
    assert_eq!(dataset.indexes(), 3);
    for wrong in ["10002", "README.md", ""] {
        let said = dataset.verb(&["index"], &[wrong]);
        assert_eq!((said.code, said.stderr.lines().count()), (1, 1), "{}", said.stderr);
        assert!(said.stderr.contains("eo-mount ls"), "{}", said.stderr);
    }
}

#[test]
fn index_goes_on_after_a_layer_that_fails() {
    let dataset = Dataset::new();
    dataset.registry.fault(Matcher::blob(&dataset.digests[1]), Fault::status(404), ALWAYS);
    let said = dataset.verb(&["index", "--json"], &[]);
    assert_eq!(said.code, 1);
    let summary: serde_json::Value = serde_json::from_str(&said.text()).unwrap();
    assert_eq!((&summary["layers"], &summary["failed"][0]["path"]), (&2.into(), &"10001".into()));
    assert_eq!(summary["failed"][0]["layer"], dataset.digests[1].as_str());
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{}", said.stderr);
    assert!(lines[0].contains("10001: ") && lines[1].contains("1 of 3 layers could not be indexed"), "{}", said.stderr);
    assert_eq!(dataset.indexes(), 2);
}

#[test]
fn index_without_a_cache_folder_is_an_error_with_a_hint() {
    let dataset = Dataset::new();
    let nowhere =
        EoMount::bare(PROGRAM).args(["index", &dataset.reference]).env("HOME", "").env("XDG_CACHE_HOME", "").output();
    assert_eq!((nowhere.code, nowhere.stderr.lines().count()), (2, 1), "{}", nowhere.stderr);
    assert!(nowhere.stderr.contains("--cache-dir"), "{}", nowhere.stderr);
    let file = dataset.verb(&["index", "--cache-dir", "/proc/version"], &[]);
    assert_eq!((file.code, file.stderr.lines().count()), (2, 1), "{}", file.stderr);
}
