//! eo-mount: mount an Earth-observation dataset from an OCI registry as a local folder.
//!
//! Layers, from low to high; a module uses its own or a lower layer only (`tests/layering.rs`):
//! core (`error`, `oci`, `index`), io (`registry`, `blob`, `cache`), service (`mount`), edge (`fuse`, `cli`).

pub mod blob;
pub mod cache;
pub mod cli;
pub mod error;
pub mod fuse;
pub mod index;
pub mod mount;
pub mod oci;
pub mod registry;
