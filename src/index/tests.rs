//! Archives made by hand, block by block, and what must come of them. What GNU tar 1.34 makes of the odd ones was
//! tried.

use proptest::prelude::*;

use super::*;

mod archive;
mod attached;
mod claim;
mod codec;
mod damage;
mod dialects;
mod properties;
mod strategies;
mod tree;

use archive::*;
