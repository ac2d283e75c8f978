//! What was measured, as JSON and as tables: `docs/benchmarks.json`, `docs/benchmarks.md`.

use std::collections::BTreeMap;
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

const START: &str = "<!-- figures: `make bench` writes what is between these lines -->\n";
const END: &str = "<!-- end of figures -->\n";

/// What one run of one contestant took.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Figures {
    #[serde(serialize_with = "to_microseconds")]
    pub seconds: f64,
    /// HTTP requests over the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Bytes from the registry, HTTP's headers included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// CPU time, of user and system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<f64>,
    /// Resident memory of the process that serves the mount, or does the work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes of disk in the cache folder, or of what was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
}

/// A head, and what a row has to say below it.
type Column = (&'static str, fn(&Row) -> Option<String>);

/// In those tables where somebody has something to say.
const COLUMNS: [Column; 5] = [
    ("CPU time", |row| row.cpu().map(|seconds| format!("{seconds:.1} s"))),
    ("requests", |row| row.requests().map(count)),
    ("from the registry", |row| row.bytes().map(bytes)),
    ("memory", |row| row.memory().map(bytes)),
    ("on disk", |row| row.disk().map(bytes)),
];

fn to_microseconds<S: serde::Serializer>(seconds: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((seconds * 1e6).round() / 1e6)
}

/// A contestant.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    pub name: String,
    /// What the number is not; may be empty.
    pub note: String,
    pub runs: Vec<Figures>,
}

/// What was promised, and what came of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct GoalRecord {
    pub says: String,
    pub value: String,
    pub met: bool,
}

/// A case that has run.
#[derive(Debug, Serialize, Deserialize)]
pub struct CaseRecord {
    pub title: String,
    pub what: String,
    /// Cores that other programs kept busy just before.
    pub busy: f64,
    pub rows: Vec<Row>,
    pub goals: Vec<GoalRecord>,
}

/// What a machine and its peers are, and which.
pub type Setting = Vec<(String, String)>;

/// All cases that ran on one machine with the same peers.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    /// The machine and the peers' versions: what, and which.
    setting: Setting,
    cases: BTreeMap<String, CaseRecord>,
}

/// Writes itself after each case.
pub struct Report {
    folder: PathBuf,
    record: Record,
    /// Keys in the order of the table.
    order: &'static [&'static str],
}

impl Report {
    /// Goes on with what was measured before in the same setting; `folder` holds both files.
    pub fn new(folder: PathBuf, setting: Setting, order: &'static [&'static str]) -> Self {
        let before = std::fs::read(folder.join("benchmarks.json")).ok();
        let before: Option<Record> = before.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let record = match before {
            Some(before) if agree(&before.setting, &setting) => Record { setting, ..before },
            Some(_) => {
                eprintln!("Another machine or other peers than before: the earlier figures are dropped");
                Record { setting, ..Record::default() }
            }
            None => Record { setting, ..Record::default() },
        };
        Self { folder, record, order }
    }

    pub fn put(&mut self, key: &str, case: CaseRecord) {
        assert!(self.order.contains(&key), "{key} has no place in the table");
        self.record.cases.insert(key.to_owned(), case);
        self.record.cases.retain(|key, _| self.order.contains(&key.as_str()));
        let json = serde_json::to_string_pretty(&self.record).expect("figures are JSON");
        self.write("benchmarks.json", &(json + "\n"));
        let page = std::fs::read_to_string(self.folder.join("benchmarks.md")).unwrap_or_default();
        let (Some((before, _)), Some((_, after))) = (page.split_once(START), page.split_once(END)) else {
            panic!("benchmarks.md in {} has no place for figures", self.folder.display());
        };
        let tables = self.record.tables(self.order);
        self.write("benchmarks.md", &format!("{before}{START}\n{tables}{END}{after}"));
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

impl Record {
    fn tables(&self, order: &[&str]) -> String {
        let mut text = String::from("| measured with | |\n|---|---|\n");
        for (what, which) in &self.setting {
            line(&mut text, format_args!("| {what} | {which} |"));
        }
        text.push('\n');
        for case in order.iter().filter_map(|key| self.cases.get(*key)) {
            case.table(&mut text);
        }
        text
    }
}

impl CaseRecord {
    fn table(&self, text: &mut String) {
        let own = self.rows.first().map_or(f64::NAN, Row::seconds);
        line(text, format_args!("### {}\n\n{}", self.title, self.what));
        if self.busy > 0.2 {
            line(
                text,
                format_args!(
                    "
Other programs kept {:.1} cores busy when this began.",
                    self.busy
                ),
            );
        }
        let shown = |(_, of): &&Column| self.rows.iter().any(|row| of(row).is_some());
        let columns: Vec<_> = COLUMNS.iter().filter(shown).collect();
        let heads: String = columns.iter().map(|(head, _)| format!("{head} | ")).collect();
        line(text, format_args!("\n| | time | {heads}runs | |\n|---|---|{}---|---|", "---|".repeat(columns.len())));
        for row in &self.rows {
            let Row { name, note, runs } = row;
            let cells: String = columns.iter().map(|(_, of)| format!("{} | ", of(row).unwrap_or_default())).collect();
            // A row that tells something else takes no time.
            let times = if row.seconds() > 0.0 { format!("{:.2}", row.seconds() / own) } else { String::new() };
            line(text, format_args!("| {name} | {times} | {cells}{} | {note} |", runs.len()));
        }
        text.push('\n');
        for GoalRecord { says, value, met } in &self.goals {
            let met = if *met { "met" } else { "**not met**" };
            line(text, format_args!("- {says}. Here {value}: {met}."));
        }
        text.push('\n');
    }
}

/// The same machine with the same versions, as far as both know: a new case may bring a new peer.
fn agree(before: &Setting, now: &Setting) -> bool {
    before.iter().all(|(what, which)| now.iter().all(|(known, version)| known != what || version == which))
}

fn line(text: &mut String, arguments: fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a String takes everything");
}

impl Row {
    /// Median of the runs, as are the others.
    pub fn seconds(&self) -> f64 {
        median(self.runs.iter().map(|run| run.seconds)).unwrap_or(f64::NAN)
    }

    pub fn cpu(&self) -> Option<f64> {
        median(self.runs.iter().filter_map(|run| run.cpu))
    }

    pub fn requests(&self) -> Option<f64> {
        self.median(|run| run.requests)
    }

    pub fn bytes(&self) -> Option<f64> {
        self.median(|run| run.bytes)
    }

    pub fn memory(&self) -> Option<f64> {
        self.median(|run| run.memory)
    }

    pub fn disk(&self) -> Option<f64> {
        self.median(|run| run.disk)
    }

    fn median(&self, of: impl Fn(&Figures) -> Option<u64>) -> Option<f64> {
        median(self.runs.iter().filter_map(of).map(|number| number as f64))
    }
}

/// The lower of the two in the middle of an even number.
fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len().saturating_sub(1) / 2).copied()
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seconds {
            0.0 => f.write_str("–")?,
            seconds if seconds < 0.01 => write!(f, "{:.1} µs", 1e6 * seconds)?,
            seconds => write!(f, "{seconds:.3} s")?,
        }
        if let Some(cpu) = self.cpu {
            write!(f, ", {cpu:.2} s of CPU")?;
        }
        if let Some(requests) = self.requests {
            write!(f, ", {requests} requests")?;
        }
        for (number, what) in [(self.bytes, ""), (self.memory, " of memory"), (self.disk, " on disk")] {
            if let Some(number) = number {
                write!(f, ", {}{what}", bytes(number as f64))?;
            }
        }
        Ok(())
    }
}

/// With commas between thousands.
pub fn count(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In units of a thousand.
pub fn bytes(number: f64) -> String {
    match number {
        number if number < 1e6 => format!("{:.0} KB", number / 1e3),
        number if number < 1e9 => format!("{:.1} MB", number / 1e6),
        number => format!("{:.2} GB", number / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([7.0, 1234.0, 1_234_567.0].map(count), ["7", "1,234", "1,234,567"]);
        assert_eq!([64_000.0, 11.1e6, 17.4e9].map(bytes), ["64 KB", "11.1 MB", "17.40 GB"]);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([3.0, 1.0].into_iter()), Some(1.0));
        assert_eq!(median([].into_iter()), None);
    }

    #[test]
    fn a_case_is_put_beside_earlier_ones_and_its_table_between_the_marks() {
        let folder = tempfile::tempdir().unwrap();
        let page = folder.path().join("benchmarks.md");
        std::fs::write(&page, format!("before\n{START}old\n{END}after\n")).unwrap();
        let setting = || vec![("cores".to_owned(), "2".to_owned())];
        let case = |title: &str, seconds: f64| CaseRecord {
            title: title.to_owned(),
            what: "A list.".to_owned(),
            busy: 0.0,
            rows: ["eo-mount", "peer"]
                .map(|name| Row {
                    name: name.to_owned(),
                    note: String::new(),
                    runs: vec![Figures { seconds: seconds * name.len() as f64, ..Figures::default() }],
                })
                .into(),
            goals: Vec::new(),
        };
        for (key, title) in [("b", "Second"), ("a", "First")] {
            Report::new(folder.path().to_owned(), setting(), &["a", "b"]).put(key, case(title, 1.0));
        }
        let text = std::fs::read_to_string(&page).unwrap();
        assert!(text.starts_with("before\n") && text.ends_with("after\n") && !text.contains("old"), "{text}");
        assert!(text.find("### First").unwrap() < text.find("### Second").unwrap(), "{text}");
        assert!(text.contains("| eo-mount | 1.00 |") && text.contains("| peer | 0.50 |"), "{text}");
        let other = vec![("cores".to_owned(), "64".to_owned())];
        Report::new(folder.path().to_owned(), other, &["a", "b"]).put("a", case("First", 2.0));
        assert!(!std::fs::read_to_string(&page).unwrap().contains("Second"), "of another machine");
    }
}
