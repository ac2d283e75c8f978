//! `user.eo.stats`: what a mount says that it did.

use std::fs;

use eo_mount_testing::files::{forget_pages, xattr};
use eo_mount_testing::fixtures::PythonTar;
use eo_mount_testing::{Artifact, EoMount, Home, Mounted, ScriptedRegistry};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn stats(mounted: &Mounted) -> Value {
    serde_json::from_str(&xattr(mounted.path(), "user.eo.stats").expect("statistics")).unwrap()
}

fn number(stats: &Value, group: &str, key: &str) -> u64 {
    stats[group][key].as_u64().unwrap_or_else(|| panic!("{group}.{key}: {stats}"))
}

#[test]
fn the_statistics_say_where_bytes_came_from() {
    let registry = ScriptedRegistry::start();
    let size = 12 * MIB;
    let tar = PythonTar::new().file("x", 1.5, Vec::new(), 1, size).finish().to_bytes();
    Artifact::new().tar("a.tar", tar).push(&registry, "a", "b");
    let home = Home::new();
    let mount = || EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("a:b")).home(&home).mount();

    let mounted = mount();
    let file = mounted.join("a/x");
    fs::read(&file).unwrap();
    let first = stats(&mounted);
    let served = |stats: &Value| ["memory", "disk", "network"].map(|from| number(stats, "served", from));
    assert_eq!(first["read_bytes"], size);
    assert_eq!(served(&first).iter().sum::<u64>(), size, "{first}");
    assert!(number(&first, "served", "network") > 0 && number(&first, "network", "bytes") >= size, "{first}");
    let ahead = ["fetched", "used", "wasted"].map(|what| number(&first, "read_ahead", what));
    assert!(ahead[0] > size / 2 && ahead[1] > size / 2 && ahead[2] == 0, "{first}");
    assert!(number(&first, "cache", "used") <= number(&first, "cache", "limit"), "{first}");

    forget_pages(&file);
    fs::read(&file).unwrap();
    let second = stats(&mounted);
    assert_eq!(second["read_bytes"], 2 * size);
    assert!(number(&second, "served", "memory") >= size, "{second}");
    assert_eq!(second["network"], first["network"]);
    mounted.unmount();

    let mounted = mount();
    fs::read(mounted.join("a/x")).unwrap();
    let later = stats(&mounted);
    assert_eq!(later["served"]["network"], 0, "{later}");
    assert!(number(&later, "served", "disk") > size / 2, "{later}");
    assert_eq!(later["read_ahead"]["fetched"], 0, "{later}");
    mounted.unmount();

    let without = EoMount::new(env!("CARGO_BIN_EXE_eo-mount"), registry.reference("a:b")).home(&home);
    let mounted = without.arg("--no-disk-cache").mount();
    assert_eq!(stats(&mounted)["cache"], Value::Null);
}
