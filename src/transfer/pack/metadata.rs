//! What a GeoJSON file (RFC 7946) tells about the parts of a dataset.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::read_small;
use crate::error::{Error, ErrorKind, Result};

/// Bytes; a patch of a dataset has about 900.
const LARGEST: u64 = 256 << 20;
/// What says which folder or layer a feature is about: the first property that is there, else the feature's id.
const KEYS: [&str; 5] = ["patch_id", "ID_PATCH", "id", "name", "tile"];
/// Of a property with the dates of one sensor, as PASTIS has them.
const DATES: &str = "dates-";
const COVERAGE: &str = "temporal_coverage";
/// STAC's names, and plain ones: beginning and end.
const PERIODS: [[&str; 2]; 3] = [["start_datetime", "end_datetime"], ["start", "end"], ["datetime", "datetime"]];

#[derive(Debug, Default)]
pub struct Metadata {
    features: HashMap<String, Feature>,
}

/// What is known of one part.
#[derive(Debug, Default, Clone)]
pub struct Known {
    pub fields: Map<String, Value>,
    pub bounding_box: Option<Value>,
    pub temporal_coverage: Option<Value>,
    pub geometry: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Collection {
    features: Vec<Feature>,
}

#[derive(Debug, Deserialize)]
struct Feature {
    id: Option<Value>,
    properties: Option<Map<String, Value>>,
    /// As it stands there: no coordinate is rounded.
    geometry: Option<Box<RawValue>>,
}

impl Metadata {
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = read_small(path, LARGEST)?;
        let wrong = |cause: String| {
            Error::new(ErrorKind::Usage, path.display(), cause).hint("give a GeoJSON FeatureCollection")
        };
        let collection: Collection =
            serde_json::from_slice(&bytes).map_err(|error| wrong(format!("no GeoJSON: {error}")))?;
        let mut features = HashMap::new();
        for (number, feature) in collection.features.into_iter().enumerate() {
            let Some(name) = feature.name() else {
                let cause = format!("feature {number} has no id, and none of the properties {}", KEYS.join(", "));
                return Err(wrong(cause));
            };
            if features.insert(name.clone(), feature).is_some() {
                return Err(wrong(format!("two features are called {name}")));
            }
        }
        Ok(Self { features })
    }

    /// A feature of that name, whatever it is about.
    pub fn of(&self, name: &str) -> Option<Known> {
        let feature = self.features.get(name)?;
        Some(Known {
            fields: feature.fields(),
            bounding_box: None,
            temporal_coverage: feature.coverage(),
            geometry: feature.geometry.clone(),
        })
    }

    /// All that is known of the folders in a layer, together.
    pub fn of_all(&self, folders: &[String]) -> Option<Known> {
        let features: Vec<_> = folders.iter().filter_map(|folder| self.features.get(folder)).collect();
        if features.is_empty() {
            return None;
        }
        let mut bounds = Bounds::default();
        let mut sensors: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        let mut period: Option<(String, String)> = None;
        for feature in features {
            let geometry = feature.geometry.as_ref().and_then(|raw| serde_json::from_str::<Value>(raw.get()).ok());
            bounds.add(geometry.as_ref().and_then(|geometry| geometry.get("coordinates")));
            for (sensor, dates) in feature.dates() {
                sensors.entry(sensor).or_default().extend(dates);
            }
            if let Some((start, end)) = feature.coverage().as_ref().and_then(period_of) {
                period = Some(match period {
                    Some((first, last)) => (first.min(start), last.max(end)),
                    None => (start, end),
                });
            }
        }
        let sensors: Map<String, Value> = sensors
            .into_iter()
            .map(|(sensor, dates)| {
                let coverage = json!({"start": dates.first(), "end": dates.last(), "count": dates.len()});
                (sensor.to_owned(), coverage)
            })
            .collect();
        let temporal_coverage = match sensors.is_empty() {
            false => Some(Value::Object(sensors)),
            true => period.map(|(start, end)| json!({"start": start, "end": end})),
        };
        Some(Known { bounding_box: bounds.json(), temporal_coverage, ..Known::default() })
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.features.keys().map(String::as_str)
    }
}

impl Feature {
    fn name(&self) -> Option<String> {
        let property = |key: &&str| self.properties.as_ref().and_then(|properties| properties.get(*key));
        match KEYS.iter().find_map(property).or(self.id.as_ref())? {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// The properties that stand for nothing else; `parcel_count` as the published configs call it.
    fn fields(&self) -> Map<String, Value> {
        let mut fields = self.properties.clone().unwrap_or_default();
        let other =
            |key: &str| !key.starts_with(DATES) && key != COVERAGE && !PERIODS.iter().flatten().any(|k| *k == key);
        fields.retain(|key, _| other(key) && !KEYS.iter().take(3).any(|own| own == key));
        if let Some(count) = fields.remove("N_Parcel") {
            fields.entry("parcel_count").or_insert(count);
        }
        fields
    }

    /// As it is given; else beginning and end of what there are dates of.
    fn coverage(&self) -> Option<Value> {
        let properties = self.properties.as_ref()?;
        if let Some(given) = properties.get(COVERAGE) {
            return Some(given.clone());
        }
        for [start, end] in PERIODS {
            if let (Some(start), Some(end)) = (properties.get(start), properties.get(end))
                && start.is_string()
                && end.is_string()
            {
                return Some(json!({"start": start, "end": end}));
            }
        }
        let dates: BTreeSet<u32> = self.dates().into_values().flatten().collect();
        let iso = |date: &u32| format!("{:04}-{:02}-{:02}", date / 10_000, date / 100 % 100, date % 100);
        Some(json!({"start": dates.first().map(iso)?, "end": dates.last().map(iso)?}))
    }

    /// As numbers such as 20180924, by sensor; they are given as `{"0": 20180924, …}` or as a list.
    fn dates(&self) -> BTreeMap<&str, BTreeSet<u32>> {
        let number = |date: &Value| match date {
            Value::String(text) => text.replace('-', "").parse().ok(),
            other => other.as_u64().and_then(|date| u32::try_from(date).ok()),
        };
        let mut sensors = BTreeMap::new();
        for (key, dates) in self.properties.iter().flatten() {
            let Some(sensor) = key.strip_prefix(DATES) else { continue };
            let dates: BTreeSet<u32> = match dates {
                Value::Object(dates) => dates.values().filter_map(number).collect(),
                Value::Array(dates) => dates.iter().filter_map(number).collect(),
                // GDAL writes objects as text.
                Value::String(text) => {
                    let dates: Option<Map<String, Value>> = serde_json::from_str(text).ok();
                    dates.iter().flat_map(Map::values).filter_map(number).collect()
                }
                _ => continue,
            };
            if !dates.is_empty() {
                sensors.insert(sensor, dates);
            }
        }
        sensors
    }
}

fn period_of(coverage: &Value) -> Option<(String, String)> {
    let text = |key: &str| coverage.get(key).and_then(Value::as_str).map(str::to_owned);
    Some((text("start")?, text("end")?))
}

/// The smallest box around all positions.
#[derive(Default)]
struct Bounds(Option<[f64; 4]>);

impl Bounds {
    /// Recursion ends where serde_json's does, at 128 levels.
    fn add(&mut self, coordinates: Option<&Value>) {
        let Some(Value::Array(values)) = coordinates else { return };
        if let (Some(x), Some(y)) = (values.first().and_then(Value::as_f64), values.get(1).and_then(Value::as_f64)) {
            let [minx, miny, maxx, maxy] = self.0.unwrap_or([x, y, x, y]);
            self.0 = Some([minx.min(x), miny.min(y), maxx.max(x), maxy.max(y)]);
        } else {
            values.iter().for_each(|value| self.add(Some(value)));
        }
    }

    fn json(&self) -> Option<Value> {
        self.0.map(|[minx, miny, maxx, maxy]| json!({"minx": minx, "miny": miny, "maxx": maxx, "maxy": maxy}))
    }
}
