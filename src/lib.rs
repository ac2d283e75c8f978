//! eo-mount: mount an Earth-observation dataset from an OCI registry as a local folder.
//!
//! Layers, from low to high; a module uses its own or a lower layer only (`tests/layering.rs`):
//! core (`error`, `oci`, `index`), io (`registry`, `blob`, `cache`), service (`mount`, `transfer`), edge (`fuse`,
//! `cli`).

#![cfg_attr(
    not(test),
    deny(
        clippy::disallowed_methods,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::todo,
        clippy::unwrap_used
    )
)]

pub mod blob;
pub mod cache;
pub mod cli;
pub mod error;
pub mod fuse;
pub mod index;
pub mod mount;
pub mod oci;
pub mod registry;
pub mod transfer;
