//! Starts a registry, says where it is, and forgets it: the registry must end with this program all the same.

use eo_mount_testing::RealRegistry;

fn main() {
    let registry = RealRegistry::start();
    println!("forgotten: {} ", registry.address());
    let _ = std::fs::remove_dir_all(registry.storage().parent().expect("a folder of its own"));
    std::mem::forget(registry);
}
