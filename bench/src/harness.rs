//! Runs the contestants of a case in turn, several times each, and judges what they took.

use std::time::{Duration, Instant};

use crate::report::{CaseRecord, Figures, GoalRecord, Report, Row};

/// What is asked of everybody, and of whom.
pub struct Case<'a> {
    key: &'static str,
    title: String,
    what: String,
    contestants: Vec<Contestant<'a>>,
    goals: Vec<Goal>,
}

struct Contestant<'a> {
    name: &'static str,
    note: &'static str,
    once: bool,
    measure: Box<dyn FnMut() -> Figures + 'a>,
}

struct Goal {
    says: String,
    unit: Unit,
    limit: Limit,
    value: Box<dyn Fn(&Medians<'_>) -> f64>,
}

/// How a number is written.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Times,
    Count,
    Bytes,
    Seconds,
    Milliseconds,
}

#[derive(Debug, Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
}

impl<'a> Case<'a> {
    /// `key` is what `ONLY` is compared with; `what` says work, link and registry.
    pub fn new(key: &'static str, title: impl Into<String>, what: impl Into<String>) -> Self {
        Self { key, title: title.into(), what: what.into(), contestants: Vec::new(), goals: Vec::new() }
    }

    /// The first one is what the others' times are compared with.
    pub fn contestant(self, name: &'static str, measure: impl FnMut() -> Figures + 'a) -> Self {
        self.add(name, "", false, measure)
    }

    /// With a word on what the number is not.
    pub fn contestant_but(self, name: &'static str, note: &'static str, measure: impl FnMut() -> Figures + 'a) -> Self {
        self.add(name, note, false, measure)
    }

    /// Runs once only: it takes minutes.
    pub fn slow_contestant(
        self,
        name: &'static str,
        note: &'static str,
        measure: impl FnMut() -> Figures + 'a,
    ) -> Self {
        self.add(name, note, true, measure)
    }

    fn add(
        mut self,
        name: &'static str,
        note: &'static str,
        once: bool,
        measure: impl FnMut() -> Figures + 'a,
    ) -> Self {
        self.contestants.push(Contestant { name, note, once, measure: Box::new(measure) });
        self
    }

    /// What `value` makes of the medians should be at most this.
    pub fn at_most(
        self,
        limit: f64,
        unit: Unit,
        says: impl Into<String>,
        value: impl Fn(&Medians<'_>) -> f64 + 'static,
    ) -> Self {
        self.goal(Limit::AtMost(limit), unit, says, value)
    }

    /// Or at least.
    pub fn at_least(
        self,
        limit: f64,
        unit: Unit,
        says: impl Into<String>,
        value: impl Fn(&Medians<'_>) -> f64 + 'static,
    ) -> Self {
        self.goal(Limit::AtLeast(limit), unit, says, value)
    }

    fn goal(
        mut self,
        limit: Limit,
        unit: Unit,
        says: impl Into<String>,
        value: impl Fn(&Medians<'_>) -> f64 + 'static,
    ) -> Self {
        self.goals.push(Goal { says: says.into(), unit, limit, value: Box::new(value) });
        self
    }
}

/// Runs the cases that were asked for.
pub struct Bench {
    only: Vec<String>,
    runs: Runs,
    report: Report,
}

/// How often: `5 tile=1` is five times, but those whose keys have `tile` once.
pub struct Runs {
    usual: usize,
    of: Vec<(String, usize)>,
}

impl Runs {
    /// None for what is no such list.
    pub fn parse(text: &str) -> Option<Self> {
        let mut runs = Self { usual: 5, of: Vec::new() };
        for word in text.split_whitespace() {
            match word.split_once('=') {
                Some((key, number)) => runs.of.push((key.to_owned(), number.parse().ok()?)),
                None => runs.usual = word.parse().ok()?,
            }
        }
        Some(runs)
    }

    fn of(&self, key: &str) -> usize {
        self.of.iter().find(|(part, _)| key.contains(part.as_str())).map_or(self.usual, |(_, runs)| *runs)
    }
}

impl Bench {
    /// `only`: parts of keys; empty for all.
    pub fn new(only: Vec<String>, runs: Runs, report: Report) -> Self {
        Self { only, runs, report }
    }

    /// Whether one of these cases will run: what they need is costly to make.
    pub fn wants(&self, keys: &[&str]) -> bool {
        self.only.is_empty() || keys.iter().any(|key| self.only.iter().any(|only| key.contains(only.as_str())))
    }

    /// Runs a case if it was asked for, and writes the report anew.
    pub fn run(&mut self, mut case: Case<'_>) {
        if !self.wants(&[case.key]) {
            return;
        }
        eprintln!("{} ({})", case.title, case.key);
        let busy = busy_cores();
        let mut rows: Vec<Row> = case
            .contestants
            .iter()
            .map(|contestant| Row { name: contestant.name.into(), note: contestant.note.into(), runs: Vec::new() })
            .collect();
        for run in 0..self.runs.of(case.key) {
            // In turn, so that whatever else the machine does meets all of them.
            for (contestant, row) in case.contestants.iter_mut().zip(&mut rows) {
                if run == 0 || !contestant.once {
                    // What the one before wrote is not to be this one's burden.
                    rustix::fs::sync();
                    let figures = (contestant.measure)();
                    eprintln!("    {}: {figures}", contestant.name);
                    row.runs.push(figures);
                }
            }
        }
        let goals: Vec<GoalRecord> = case.goals.iter().map(|goal| goal.judge(&Medians { rows: &rows })).collect();
        for goal in &goals {
            let GoalRecord { says, value, met } = goal;
            eprintln!("    {} {says}: {value}", if *met { "PASS" } else { "MISS" });
        }
        let record = CaseRecord { title: case.title, what: case.what, busy, rows, goals };
        self.report.put(case.key, record);
    }
}

/// Medians of a case by contestant.
pub struct Medians<'a> {
    rows: &'a [Row],
}

impl Medians<'_> {
    pub fn seconds(&self, name: &str) -> f64 {
        self.row(name).seconds()
    }

    pub fn requests(&self, name: &str) -> f64 {
        self.row(name).requests().unwrap_or(f64::NAN)
    }

    pub fn bytes(&self, name: &str) -> f64 {
        self.row(name).bytes().unwrap_or(f64::NAN)
    }

    pub fn memory(&self, name: &str) -> f64 {
        self.row(name).memory().unwrap_or(f64::NAN)
    }

    pub fn disk(&self, name: &str) -> f64 {
        self.row(name).disk().unwrap_or(f64::NAN)
    }

    fn row(&self, name: &str) -> &Row {
        self.rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("{name} does not take part"))
    }
}

impl Goal {
    fn judge(&self, medians: &Medians<'_>) -> GoalRecord {
        let value = (self.value)(medians);
        let (word, limit, met) = match self.limit {
            Limit::AtMost(limit) => ("at most", limit, value <= limit),
            Limit::AtLeast(limit) => ("at least", limit, value >= limit),
        };
        GoalRecord {
            says: format!("{}: {word} {}", self.says, self.unit.write(limit)),
            value: self.unit.write(value),
            met,
        }
    }
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Self::Times => format!("{value:.2} ×"),
            Self::Count => crate::report::count(value),
            Self::Bytes => crate::report::bytes(value),
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{value:.2} ms"),
        }
    }
}

/// Cores that others keep busy, over a second in which we do nothing. The load average would count our own last case.
fn busy_cores() -> f64 {
    let start = Instant::now();
    let before = busy_seconds();
    std::thread::sleep(Duration::from_secs(1));
    (busy_seconds() - before) / start.elapsed().as_secs_f64()
}

/// proc(5), `/proc/stat`: all but the fourth and fifth number, idle and waiting for disks, in ticks.
fn busy_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("/proc is mounted");
    let all = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let busy = all.enumerate().filter(|(place, _)| !matches!(place, 3 | 4)).take(6);
    let ticks: f64 = busy.filter_map(|(_, ticks)| ticks.parse::<f64>().ok()).sum();
    ticks / rustix::param::clock_ticks_per_second() as f64
}

#[cfg(test)]
mod tests {
    use super::Runs;

    #[test]
    fn a_case_may_run_more_seldom_than_others() {
        let runs = Runs::parse("3 soak=1 tile=2").unwrap();
        assert_eq!(["patch", "soak", "tile-scripted"].map(|key| runs.of(key)), [3, 1, 2]);
        assert_eq!(Runs::parse("").unwrap().of("patch"), 5);
        assert!(Runs::parse("often").is_none() && Runs::parse("tile=often").is_none());
    }
}
