//! Which trees an extraction has made, for the call that goes on after an interruption: a file in the output folder, a line a
//! tree, gone when all are made.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::Item;
use crate::transfer::folder::Folder;

const NAME: &str = ".eo-mount-extracted";
/// Bytes; a line has some hundred.
const LARGEST: u64 = 64 << 20;

/// By path: what is extracted there last counts.
#[derive(Debug, Default)]
pub struct Done(HashMap<String, String>);

impl Done {
    /// Nothing where it cannot be read: then it is done again. Blocks on the disk.
    pub fn read(output: &Path) -> Self {
        let mut text = String::new();
        let file = output.is_dir().then(|| Folder::open(output).and_then(|output| output.file(OsStr::new(NAME))));
        let read = file.map(|file| file?.take(LARGEST).read_to_string(&mut text));
        if !matches!(read, Some(Ok(_))) {
            return Self::default();
        }
        // The last line may be half of one.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter_map(|line| line.split_once(' '));
        Self(lines.map(|(digest, path)| (path.to_owned(), digest.to_owned())).collect())
    }

    pub fn has(&self, item: &Item) -> bool {
        self.0.get(&key(item)).is_some_and(|digest| digest == item.blob.digest.as_str())
    }

    pub fn add(&mut self, output: &Folder, item: &Item) -> io::Result<()> {
        let mut file = output.file_to_write(OsStr::new(NAME))?;
        file.seek(SeekFrom::End(0))?;
        writeln!(file, "{} {}", item.blob.digest, key(item))?;
        self.0.insert(key(item), item.blob.digest.to_string());
        Ok(())
    }

    pub fn clear(output: &Folder) -> io::Result<()> {
        output.remove(OsStr::new(NAME))
    }
}

/// On one line.
fn key(item: &Item) -> String {
    format!("{:?}", item.path)
}
