//! `eo-mount ls REFERENCE [PATH]`: what a mount would show, without one.

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;

use clap::Parser;
use serde::Serialize;

use super::common::Common;
use super::failure::{ARTIFACT, Failure};
use super::show;
use crate::error::{Error, ErrorKind};
use crate::mount::{Attributes, Failed, Found, Ino, Kind, Mount};

/// List what is in a dataset, without mounting it
#[derive(Debug, Parser)]
pub struct Command {
    /// As for a mount
    reference: String,

    /// Below the root of the dataset, or a glob over paths (** for any number of folders) [default: the root]
    path: Option<OsString>,

    /// Mode, links, owner, group, size, time of change (UTC), name, and where a link points
    #[arg(short = 'l')]
    long: bool,

    /// All that is below, directory by directory
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Names that begin with a dot, too
    #[arg(short, long)]
    all: bool,

    /// One JSON object a line, for all names
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    common: Common,
}

/// An entry, and its path as it was asked for.
struct Row {
    path: Vec<u8>,
    name: Vec<u8>,
    attributes: Attributes,
    target: Option<Vec<u8>>,
}

#[derive(Serialize)]
struct Json<'a> {
    path: String,
    name: String,
    /// Where UTF-8 cannot write the path.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    kind: &'a str,
    /// Bytes.
    size: u64,
    /// Octal.
    mode: String,
    uid: u32,
    gid: u32,
    nlink: u32,
    mtime: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<String>,
    /// Digest of the layer that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<&'a str>,
}

impl Command {
    pub fn run(self) -> Result<(), Failure> {
        self.common.run(self.list())
    }

    async fn list(&self) -> Result<(), Failure> {
        let mount = Mount::open(&self.reference, self.common.options()?).await.map_err(|e| Failure::artifact(&e))?;
        let path = self.path.as_ref().map_or(&b""[..], |path| path.as_bytes());
        let mut printer = Printer::new(self, &mount);
        let mut failed = Vec::new();
        let mut places = mount.find(path, &mut failed).await.map_err(|error| Failure::artifact(&error))?;
        let is_glob = mount.resolve(path).await.is_err();
        let top = places.first().map(|place| place.ino).unwrap_or(Ino::ROOT);
        let found = mount.attributes(top).await.map_err(|error| Failure::artifact(&error))?;
        let done = if is_glob {
            for Failed { path, error } in failed {
                let _ = printer.fail(path.as_bytes(), &error);
            }
            self.list_places(&mount, &mut places, &mut printer).await
        } else if found.kind == Kind::Directory {
            self.list_directory(&mount, path, found, &mut printer).await
        } else {
            // Named as it was asked for, as ls does.
            let row = row(&mount, path.to_vec(), path.to_vec(), found).await;
            row.map_err(Stop::Failed).and_then(|row| Ok(printer.rows(&[row])?))
        };
        match done.and_then(|()| Ok(printer.out.flush()?)) {
            Ok(()) if printer.failed => Err(Failure::silent(ARTIFACT)),
            Ok(()) => Ok(()),
            Err(Stop::Failed(error)) => Err(Failure::artifact(&error)),
            Err(Stop::Output(error)) => Failure::of_output(Err(error)),
        }
    }

    /// What a glob matches, by path, as the shell would give it to `ls -d`; then what is below, if that is wanted.
    async fn list_places(&self, mount: &Mount, places: &mut [Found], printer: &mut Printer<'_>) -> Result<(), Stop> {
        places.sort_by(|one, other| one.path.cmp(&other.path));
        let mut rows = Vec::new();
        for Found { path, ino, .. } in places.iter() {
            let attributes = mount.attributes(*ino).await.map_err(Stop::Failed)?;
            rows.push(row(mount, path.clone(), path.clone(), attributes).await.map_err(Stop::Failed)?);
        }
        printer.rows(&rows)?;
        for row in rows.iter().filter(|row| self.recursive && row.attributes.kind == Kind::Directory) {
            if !self.json {
                printer.out.write_all(b"\n")?;
            }
            self.list_directory(mount, &row.path, row.attributes, printer).await?;
        }
        Ok(())
    }

    /// And what is below, if that is wanted; there, what fails is told and passed over.
    async fn list_directory(
        &self,
        mount: &Mount,
        path: &[u8],
        directory: Attributes,
        printer: &mut Printer<'_>,
    ) -> Result<(), Stop> {
        let top: Vec<u8> = path.strip_suffix(b"/").unwrap_or(path).to_vec();
        let mut waiting = vec![(top, directory)];
        let mut first = true;
        while let Some((path, directory)) = waiting.pop() {
            let rows = match self.rows(mount, &path, directory).await {
                Ok(rows) => rows,
                Err(error) if first => return Err(Stop::Failed(error)),
                Err(error) => {
                    printer.fail(&path, &error)?;
                    continue;
                }
            };
            if self.recursive && !self.json {
                printer.heading(&path, first)?;
            }
            printer.rows(&rows)?;
            first = false;
            if self.recursive {
                let below = rows.into_iter().rev().filter(|row| row.attributes.kind == Kind::Directory);
                waiting.extend(below.map(|row| (row.path, row.attributes)));
            }
        }
        Ok(())
    }

    async fn rows(&self, mount: &Mount, path: &[u8], directory: Attributes) -> Result<Vec<Row>, Error> {
        mount.indexed(directory.ino).await?;
        let mut names = Vec::new();
        mount
            .list(directory.ino, 2, |listed| {
                if self.all || self.json || !listed.name.starts_with(b".") {
                    names.push((listed.name.to_vec(), listed.attributes));
                }
                true
            })
            .await?;
        let mut rows = Vec::with_capacity(names.len());
        for (name, attributes) in names {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            rows.push(row(mount, path, name, attributes).await?);
        }
        Ok(rows)
    }
}

async fn row(mount: &Mount, path: Vec<u8>, name: Vec<u8>, attributes: Attributes) -> Result<Row, Error> {
    let target = match attributes.kind {
        Kind::Symlink => Some(mount.read_link(attributes.ino).await?),
        _ => None,
    };
    Ok(Row { path, name, attributes, target })
}

enum Stop {
    Failed(Error),
    Output(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

struct Printer<'a> {
    command: &'a Command,
    mount: &'a Mount,
    out: BufWriter<io::Stdout>,
    terminal: bool,
    failed: bool,
}

impl<'a> Printer<'a> {
    fn new(command: &'a Command, mount: &'a Mount) -> Self {
        let out = io::stdout();
        let terminal = out.is_terminal();
        Self { command, mount, out: BufWriter::new(out), terminal, failed: false }
    }

    fn rows(&mut self, rows: &[Row]) -> io::Result<()> {
        let width = |number: fn(&Attributes) -> u64| {
            rows.iter().map(|row| number(&row.attributes).checked_ilog10().unwrap_or(0) as usize + 1).max().unwrap_or(1)
        };
        let widths = (
            width(|attributes| u64::from(attributes.nlink)),
            width(|attributes| u64::from(attributes.uid)),
            width(|attributes| u64::from(attributes.gid)),
            width(|attributes| attributes.size),
        );
        for row in rows {
            if self.command.json {
                self.json(row)?;
                continue;
            }
            if self.command.long {
                let Attributes { kind, mode, nlink, uid, gid, size, mtime, .. } = row.attributes;
                let (mode, mtime) = (show::mode(kind, mode), show::rfc3339(mtime, false));
                let (links, owner, group, bytes) = widths;
                write!(self.out, "{mode} {nlink:links$} {uid:owner$} {gid:group$} {size:bytes$} {mtime} ")?;
            }
            self.name(&row.name)?;
            if let Some(target) = row.target.as_ref().filter(|_| self.command.long) {
                self.out.write_all(b" -> ")?;
                self.name(target)?;
            }
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn heading(&mut self, path: &[u8], first: bool) -> io::Result<()> {
        if !first {
            self.out.write_all(b"\n")?;
        }
        self.name(if path.is_empty() { b"." } else { path })?;
        self.out.write_all(b":\n")
    }

    /// To others, names are given as they are, as ls does.
    fn name(&mut self, name: &[u8]) -> io::Result<()> {
        match self.terminal {
            true => self.out.write_all(show::escaped(name).as_bytes()),
            false => self.out.write_all(name),
        }
    }

    fn json(&mut self, row: &Row) -> io::Result<()> {
        let Attributes { ino, kind, mode, nlink, uid, gid, size, mtime, .. } = row.attributes;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let hex = || row.path.iter().map(|byte| format!("{byte:02x}")).collect();
        let json = Json {
            path: text(&row.path),
            name: text(row.path.rsplit(|&byte| byte == b'/').next().unwrap_or(&row.path)),
            path_hex: std::str::from_utf8(&row.path).is_err().then(hex),
            kind: show::kind(kind),
            size,
            mode: format!("{mode:04o}"),
            uid,
            gid,
            nlink,
            mtime: show::rfc3339(mtime, true),
            link: row.target.as_deref().map(text),
            layer: self.mount.layer_digest(ino).map(|digest| digest.as_str()),
        };
        serde_json::to_writer(&mut self.out, &json)?;
        self.out.write_all(b"\n")
    }

    /// What was printed before stands before it.
    fn fail(&mut self, path: &[u8], error: &Error) -> io::Result<()> {
        self.failed = true;
        self.out.flush()?;
        let line = Error::new(ErrorKind::Io, String::from_utf8_lossy(path), error);
        writeln!(io::stderr(), "eo-mount: {line}")
    }
}
