//! The part of the tree that the manifest alone tells: directories, layers, and blobs that are files.

use std::collections::HashMap;

use super::names::Parts;

/// Number of a node; the root is 0.
pub type NodeId = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    Directory,
    /// The directory of the layer with this number; what is in it, its index tells.
    Layer(usize),
    /// The layer with this number as a file.
    LayerFile(usize),
    /// The folder of the manifest with this number, in an index.
    Manifest(usize),
    /// The config of the manifest with this number.
    Config(usize),
    /// In the tree of `.oci`: its file with this number.
    Blob(usize),
}

#[derive(Debug)]
pub struct Tree {
    nodes: Vec<Node>,
    parents: Vec<NodeId>,
    /// Of each directory, sorted by name.
    children: Vec<Vec<(String, NodeId)>>,
}

impl Tree {
    /// `places` must not clash, as [`super::names::places`] makes them; a directory that is one of them stands before what is
    /// in it.
    pub fn new(places: impl IntoIterator<Item = (Parts, Node)>) -> Self {
        let mut tree = Self { nodes: vec![Node::Directory], parents: vec![0], children: vec![Vec::new()] };
        let mut known: HashMap<(NodeId, String), NodeId> = HashMap::new();
        for (parts, node) in places {
            let mut parent = 0;
            let last = parts.len().saturating_sub(1);
            for (depth, part) in parts.into_iter().enumerate() {
                let node = if depth == last { node } else { Node::Directory };
                parent = *known.entry((parent, part)).or_insert_with_key(|(parent, part)| {
                    let id = tree.nodes.len();
                    tree.nodes.push(node);
                    tree.parents.push(*parent);
                    tree.children.push(Vec::new());
                    if let Some(children) = tree.children.get_mut(*parent) {
                        children.push((part.clone(), id));
                    }
                    id
                });
            }
        }
        tree.children.iter_mut().for_each(|children| children.sort());
        tree
    }

    pub fn node(&self, id: NodeId) -> Option<Node> {
        self.nodes.get(id).copied()
    }

    pub fn parent(&self, id: NodeId) -> NodeId {
        self.parents.get(id).copied().unwrap_or_default()
    }

    pub fn children(&self, id: NodeId) -> &[(String, NodeId)] {
        self.children.get(id).map(Vec::as_slice).unwrap_or_default()
    }

    pub fn child(&self, id: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children(id);
        let place = children.binary_search_by(|(child, _)| child.as_bytes().cmp(name)).ok()?;
        children.get(place).map(|(_, id)| *id)
    }

    /// From the root down, with slashes.
    pub fn path(&self, mut id: NodeId) -> String {
        let mut parts = Vec::new();
        while id != 0 {
            let parent = self.parent(id);
            let name = self.children(parent).iter().find(|(_, child)| *child == id);
            parts.extend(name.map(|(name, _)| name.as_str()));
            id = parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// `None`: the layer has no place.
    pub fn path_of_layer(&self, number: usize) -> Option<String> {
        let is_it = |node: &Node| matches!(node, Node::Layer(own) | Node::LayerFile(own) if *own == number);
        self.nodes.iter().position(is_it).map(|id| self.path(id))
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Number and node of each layer that is a directory, in the order in which a walk over the tree comes to them.
    pub fn layers(&self) -> Vec<(usize, NodeId)> {
        let mut layers = Vec::new();
        let mut waiting = vec![0];
        while let Some(id) = waiting.pop() {
            if let Some(Node::Layer(number)) = self.node(id) {
                layers.push((number, id));
            }
            waiting.extend(self.children(id).iter().rev().map(|(_, child)| *child));
        }
        layers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_become_sorted_directories() {
        let parts = |path: &str| path.split('/').map(str::to_owned).collect::<Parts>();
        let tree = Tree::new([
            (parts("b/2"), Node::Layer(1)),
            (parts("b/1"), Node::Layer(0)),
            (parts("a"), Node::LayerFile(2)),
            (parts("config.json"), Node::Config(0)),
        ]);
        let names = |id| tree.children(id).iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>();
        assert_eq!(names(0), ["a", "b", "config.json"]);
        let b = tree.child(0, b"b").unwrap();
        assert_eq!(names(b), ["1", "2"]);
        let second = tree.child(b, b"2").unwrap();
        assert_eq!((tree.node(second), tree.path(second)), (Some(Node::Layer(1)), "b/2".to_owned()));
        assert_eq!((tree.child(b, b"3"), tree.parent(b)), (None, 0));
        assert_eq!(tree.len(), 6);
        assert_eq!(tree.layers().iter().map(|(number, _)| *number).collect::<Vec<_>>(), [0, 1]);
    }
}
