//! Sparse members: from their header to the end of their map.

use super::super::error::ScanError;
use super::super::member::Member;
use super::super::number;
use super::super::sparse::{self, Map, MapError, TextMap};
use super::{BLOCK, Scanner, State, padded};

/// A sparse member whose map is not read to its end.
#[derive(Debug, Clone)]
pub(super) struct Draft {
    member: Member,
    /// Bytes that `member.data` will have, once the map is read.
    stored: u64,
}

impl Draft {
    /// Where its headers start, its name, and where the next member's headers are due.
    pub(super) fn place(&self) -> (u64, &[u8], u64) {
        (self.member.header, &self.member.path, self.member.next)
    }
}

impl Scanner {
    /// Formats 0.0 and 0.1. Without any piece the data is the file's start.
    pub(super) fn pax_sparse(
        &mut self,
        mut member: Member,
        mut map: Map,
        real_size: Option<u64>,
    ) -> Result<Member, ScanError> {
        let stored = member.size;
        let size = real_size.unwrap_or(stored);
        if map.is_empty() {
            let _ = map.push(0, stored.min(size), u64::MAX);
        }
        member.size = size;
        self.placed(Draft { member, stored }, &map)
    }

    pub(super) fn header_sparse(
        &mut self,
        member: Member,
        descriptors: &[u8],
        more: bool,
        real_size: &[u8],
    ) -> Result<Option<Member>, ScanError> {
        let offset = member.header;
        let size = number::parse(real_size).and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or(ScanError::Number { offset, field: "real size" })?;
        let draft = self.sparse_draft(member, size)?;
        let mut map = Map::default();
        let ended = sparse::descriptors(&mut map, descriptors, self.limits.sparse_extents);
        if self.map_ok(offset, ended)? || !more {
            return self.placed(draft, &map).map(Some);
        }
        self.state = State::Descriptors(Box::new((draft, map)));
        Ok(None)
    }

    pub(super) fn sparse_draft(&self, mut member: Member, size: u64) -> Result<Draft, ScanError> {
        if size > i64::MAX as u64 {
            return Err(ScanError::Number { offset: member.header, field: "real size" });
        }
        let stored = member.size;
        member.size = size;
        Ok(Draft { member, stored })
    }

    /// The extension blocks lie between header and data, and the header's size does not count them.
    pub(super) fn descriptors(&mut self, draft: (Draft, Map), window: &[u8]) -> Result<Option<Member>, ScanError> {
        let (mut draft, mut map) = draft;
        let offset = draft.member.header;
        let end = self.pos.saturating_add(BLOCK);
        let Ok(block) = window.try_into() else {
            return Err(self.truncated(offset, &draft.member.path, end));
        };
        let ended = sparse::extension(&mut map, block, self.limits.sparse_extents);
        let ended = self.map_ok(offset, ended)?;
        self.pos = end;
        draft.member.data = end..end.saturating_add(draft.stored);
        draft.member.next = end.saturating_add(padded(draft.stored));
        self.must_hold(offset, &draft.member.path, draft.member.next)?;
        if ended {
            return self.placed(draft, &map).map(Some);
        }
        self.state = State::Descriptors(Box::new((draft, map)));
        Ok(None)
    }

    /// The blocks of the map are the first of the data, and the size counts them.
    pub(super) fn text_map(&mut self, draft: (Draft, TextMap), window: &[u8]) -> Result<Option<Member>, ScanError> {
        let (mut draft, mut text) = draft;
        let offset = draft.member.header;
        let Some(stored) = draft.stored.checked_sub(BLOCK) else {
            return Err(ScanError::Sparse { offset, what: "a map that does not end" });
        };
        let ended = text.block(window, self.limits.sparse_extents);
        let ended = self.map_ok(offset, ended)?;
        self.pos = self.pos.saturating_add(BLOCK);
        draft.stored = stored;
        draft.member.data.start = self.pos;
        if ended {
            return self.placed(draft, &text.map).map(Some);
        }
        self.state = State::TextMap(Box::new((draft, text)));
        Ok(None)
    }

    fn placed(&mut self, draft: Draft, map: &Map) -> Result<Member, ScanError> {
        let Draft { mut member, stored } = draft;
        let extents = map.place(member.size, member.data.start, stored);
        member.sparse = Some(extents.map_err(|what| ScanError::Sparse { offset: member.header, what })?);
        self.pos = member.next;
        Ok(member)
    }

    fn map_ok(&self, offset: u64, ended: Result<bool, MapError>) -> Result<bool, ScanError> {
        ended.map_err(|error| match error {
            MapError::Bad(what) => ScanError::Sparse { offset, what },
            MapError::TooLong => ScanError::Limit { offset, limit: "sparse_extents", max: self.limits.sparse_extents },
        })
    }
}
