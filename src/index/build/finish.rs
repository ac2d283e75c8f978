//! From a tree in the making to one that is looked up.

use std::collections::HashMap;

use super::super::layer::{Dirent, LayerIndex, Span};
use super::super::member::Kind;
use super::{LayerIndexBuilder, ROOT};

impl LayerIndexBuilder {
    /// Drops what no name stands for any more, and sorts.
    pub fn finish(self) -> LayerIndex {
        let Self { mut tree, limits, warnings, names, extents, xattrs, .. } = self;
        drop(names);
        let mut numbers: Vec<Option<u32>> = Vec::with_capacity(tree.nodes.len());
        let mut kept = 0u32;
        for (old, node) in tree.nodes.iter().enumerate() {
            let alive = node.links > 0 || old == ROOT as usize;
            numbers.push(alive.then_some(kept));
            kept = kept.saturating_add(u32::from(alive));
        }
        let number = |old: u32| numbers.get(old as usize).copied().flatten();
        let mut at = 0usize;
        tree.nodes.retain(|_| {
            at = at.saturating_add(1);
            number(u32::try_from(at.saturating_sub(1)).unwrap_or(u32::MAX)).is_some()
        });
        tree.dirents.retain_mut(|dirent| match (number(dirent.parent), number(dirent.entry)) {
            (Some(parent), Some(entry)) => {
                (dirent.parent, dirent.entry) = (parent, entry);
                true
            }
            _ => false,
        });
        let text = &tree.text;
        let name = |dirent: &Dirent| {
            let at = dirent.name_at as usize;
            text.get(at..at.saturating_add(dirent.name_len as usize)).unwrap_or_default()
        };
        tree.dirents.sort_unstable_by(|a, b| a.parent.cmp(&b.parent).then_with(|| name(a).cmp(name(b))));
        for node in tree.nodes.iter_mut().filter(|node| node.kind == Kind::Directory) {
            let parent = u32::try_from(node.extent).ok().and_then(number).unwrap_or(ROOT);
            (node.extent, node.links, node.children) = (u64::from(parent), 0, 0);
        }
        for (at, dirent) in tree.dirents.iter().enumerate() {
            let is_directory = tree.nodes.get(dirent.entry as usize).is_some_and(|node| node.kind == Kind::Directory);
            if let Some(parent) = tree.nodes.get_mut(dirent.parent as usize) {
                if parent.children == 0 {
                    parent.place = at as u64;
                }
                parent.children = parent.children.saturating_add(1);
                parent.links = parent.links.saturating_add(u32::from(is_directory));
            }
        }
        let sorted = |spans: HashMap<u32, Span>| {
            let renumbered = spans.into_values().filter_map(|span| Some(Span { entry: number(span.entry)?, ..span }));
            let mut spans: Vec<Span> = renumbered.collect();
            spans.sort_unstable_by_key(|span| span.entry);
            spans
        };
        tree.extent_spans = sorted(extents);
        tree.xattr_spans = sorted(xattrs);
        if warnings > limits.warnings {
            tree.warnings.push(format!("{} more warnings", warnings.saturating_sub(limits.warnings)));
        }
        tree.nodes.shrink_to_fit();
        tree.dirents.shrink_to_fit();
        tree.text.shrink_to_fit();
        tree.extents.shrink_to_fit();
        tree
    }
}
