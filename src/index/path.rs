//! Where a member goes below the layer's directory.

/// The parts of a member's name that place it: as GNU tar (src/names.c, `safer_name_suffix`), all up to the last `..`
/// is dropped, and so are `.` and empty parts. No part at all: the layer's directory itself. `tar -x` strips hard link
/// targets so, too, but leaves out a member with `..`; here it is placed, with a warning.
pub fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let all = || path.split(|&byte| byte == b'/');
    let last_dotdot = all().enumerate().filter(|(_, part)| *part == b"..").last();
    let dropped = last_dotdot.map_or(0, |(at, _)| at.saturating_add(1));
    all().skip(dropped).filter(|part| !part.is_empty() && *part != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_stays_below_the_layers_directory() {
        let placed = |path: &str| {
            parts(path.as_bytes()).map(|part| String::from_utf8(part.to_vec()).unwrap()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(placed("a/b"), "a|b");
        assert_eq!(placed("/etc//passwd"), "etc|passwd");
        assert_eq!(placed("././a/./b/"), "a|b");
        assert_eq!(placed("../../a/x"), "a|x");
        assert_eq!(placed("a/../b/x"), "b|x");
        assert_eq!(placed("a/.."), "");
        assert_eq!(placed("./"), "");
        assert_eq!(placed(""), "");
        assert_eq!(placed("..a/b.."), "..a|b..");
    }
}
