//! From the header of a member, and the extension headers before it, to the member.

use tar_core::Header;

use super::super::error::ScanError;
use super::super::header as header_fields;
use super::super::member::{Kind, Member, MemberKind};
use super::super::number;
use super::super::sparse::TextMap;
use super::{BLOCK, Pending, Scanner, State, padded, shown};

impl Scanner {
    /// The header of a member itself. `None`: it makes nothing, or its map comes first.
    pub(super) fn member(&mut self, header: &Header, flag: u8) -> Result<Option<Member>, ScanError> {
        let Pending { header: first, name, link, records } = std::mem::take(&mut self.pending);
        let offset = first.unwrap_or(self.pos);
        self.members = self.members.saturating_add(1);
        self.last = offset;
        self.limit(offset, "entries", self.members, self.limits.entries)?;

        let sparse = records.sparse;
        let sparse_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name
            .or_else(|| records.path.or_else(|| self.global.path.clone()).flatten())
            .or(name)
            .unwrap_or_else(|| header_fields::name(header));
        let link = (records.linkpath.or_else(|| self.global.linkpath.clone()).flatten())
            .or(link)
            .unwrap_or_else(|| header_fields::c_string(&header.as_ustar().linkname).to_vec());

        // GNU tar takes no data behind these, whatever their size says (tried with 1.34); a directory's is a quota.
        let has_data = !matches!(flag, b'1'..=b'6');
        let claimed = self.claimed_size(offset, records.size, header);
        // With a slash at its end it is a directory of BSD's tar, which has none either; but GNU tar wants a size that
        // is one.
        let is_directory = matches!(flag, b'0' | b'\0' | b'7') && path.ends_with(b"/");
        // POSIX lets a hard link of a PAX archive have data (pax, `-o linkdata`): it has, if no header stands there.
        let (size, claimed) = match claimed {
            claimed if !has_data => (0, claimed.unwrap_or(0)),
            Ok(claimed) if is_directory => (0, claimed),
            claimed => claimed.map(|size| (size, size))?,
        };
        let start = self.pos.saturating_add(BLOCK);
        let next = start.saturating_add(padded(size));
        self.must_hold(offset, &path, next)?;
        self.claimed_end = start.saturating_add(padded(claimed));

        match flag {
            b'M' => return Err(ScanError::MultiVolume { offset, member: shown(&path) }),
            // A volume's label.
            b'V' => {
                self.pos = next;
                return Ok(None);
            }
            _ => {}
        }
        let kind = kind_of(flag, &path);
        let is_file = kind == MemberKind::Entry(Kind::File);
        let ustar = header.as_ustar();
        let mtime = records.mtime.or(self.global.mtime).flatten();
        let mut xattrs = self.global.xattrs.clone();
        xattrs.retain(|(name, _)| !records.xattrs.iter().any(|(local, _)| local == name));
        xattrs.extend(records.xattrs);
        let member = Member {
            header: offset,
            next,
            path,
            kind,
            mode: number::parse(&ustar.mode).map_or(0o7777, |mode| (mode & 0o7777) as u16),
            uid: records.uid.or(self.global.uid).flatten().unwrap_or_else(|| number::id(number::parse(&ustar.uid))),
            gid: records.gid.or(self.global.gid).flatten().unwrap_or_else(|| number::id(number::parse(&ustar.gid))),
            mtime: mtime.unwrap_or_else(|| header_fields::mtime(header)),
            size: if is_file { size } else { 0 },
            data: if is_file { start..start.saturating_add(size) } else { start..start },
            sparse: None,
            link: if matches!(flag, b'1' | b'2') { link } else { Vec::new() },
            rdev: if matches!(flag, b'3' | b'4') { header_fields::rdev(header) } else { 0 },
            xattrs,
        };
        self.pos = start;
        if !is_file {
            self.pos = next;
            return Ok(Some(member));
        }
        if let Some(sparse) = sparse {
            let real_size = sparse.real_size;
            return match (sparse.major, sparse.minor) {
                (0, _) => self.pax_sparse(member, sparse.map, real_size).map(Some),
                (1, 0) => {
                    let size = real_size.unwrap_or(member.size);
                    self.sparse_draft(member, size).map(|draft| {
                        self.state = State::TextMap(Box::new((draft, TextMap::default())));
                        None
                    })
                }
                _ => Err(ScanError::Sparse { offset, what: "a map of an unknown version" }),
            };
        }
        if flag == b'S'
            && let Some((descriptors, more, real_size)) = header_fields::sparse_map(header)
        {
            return self.header_sparse(member, descriptors, more, real_size);
        }
        self.pos = next;
        Ok(Some(member))
    }
}

fn kind_of(flag: u8, path: &[u8]) -> MemberKind {
    MemberKind::Entry(match flag {
        b'1' => return MemberKind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' | b'D' => Kind::Directory,
        b'6' => Kind::Fifo,
        // As BSD's tar wrote directories before there was a flag for them.
        _ if path.ends_with(b"/") => Kind::Directory,
        _ => Kind::File,
    })
}

/// What a header may claim.
impl Scanner {
    /// Bytes of data, as the records or else the header have it.
    fn claimed_size(&self, offset: u64, of_records: Option<Option<u64>>, header: &Header) -> Result<u64, ScanError> {
        match of_records.or(self.global.size).flatten() {
            Some(size) if size > i64::MAX as u64 => Err(ScanError::Number { offset, field: "size" }),
            Some(size) => Ok(size),
            None => self.size(header),
        }
    }

    pub(super) fn size(&self, header: &Header) -> Result<u64, ScanError> {
        let size = number::parse(&header.as_ustar().size);
        let size = size.and_then(|size| i64::try_from(size).ok()).and_then(|size| u64::try_from(size).ok());
        size.ok_or(ScanError::Number { offset: self.pos, field: "size" })
    }

    pub(super) fn limit(&self, offset: u64, limit: &'static str, value: u64, max: u64) -> Result<(), ScanError> {
        if value > max {
            return Err(ScanError::Limit { offset, limit, max });
        }
        Ok(())
    }

    pub(super) fn must_hold(&self, offset: u64, member: &[u8], end: u64) -> Result<(), ScanError> {
        if end > self.blob_size {
            return Err(self.truncated(offset, member, end));
        }
        Ok(())
    }

    pub(super) fn truncated(&self, offset: u64, member: &[u8], end: u64) -> ScanError {
        ScanError::Truncated { offset, member: shown(member), end, blob_size: self.blob_size }
    }
}
