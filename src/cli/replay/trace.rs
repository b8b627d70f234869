//! Traces: files of recorded traffic, read as a stream of arrivals in the order of their time.
//!
//! A million rows must pass in bounded memory, so that readers hold one row at a time; the one
//! exception, [`functions`], says what it holds and up to which bound. What a
//! trace does not say (who asked, how many tokens) is filled in by a rule that is written beside the
//! code and reported with the result.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use csv::StringRecord;

use crate::cli::chance::{Chance, ZIPF_EXPONENT, Zipf};
use crate::cli::replay::{functions, servegen};

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Arrival {
    /// Milliseconds since the first arrival of the trace. Never less than that of the one before.
    pub at_ms: u64,
    /// Who asks: one segment or more, to come after the prefix.
    pub account: Arc<str>,
    /// What is asked for, where the trace says so.
    pub feature: Option<Arc<str>>,
    pub usage: Vec<(Arc<str>, u64)>,
}

pub(in crate::cli) type Arrivals = Box<dyn Iterator<Item = Result<Arrival, TraceError>> + Send>;

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("cannot read the trace {}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("cannot read a row of the trace")]
    Row(#[from] csv::Error),
    #[error("line {line} of the trace: {what}")]
    Value { line: u64, what: String },
    #[error("the columns {0:?} are of no known format; name one with --format")]
    FormatUnknown(Vec<String>),
    #[error("the trace has no column {0:?}")]
    ColumnMissing(&'static str),
    #[error("the trace has more than {0} rows or requests, which is as many as are held in memory")]
    TooLong(usize),
}

/// What a compressed file begins with.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The columns that a trace has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(in crate::cli) enum Format {
    /// Tell by the columns
    Auto,
    /// TIMESTAMP,ContextTokens,GeneratedTokens
    AzureLlm,
    /// timestamp_ms,input_length,output_length
    Mooncake,
    /// func,minute,count
    AzureFunctions,
    /// client,window_start_s,rate_rps,pattern,param1: arrivals are drawn from it
    Servegen,
    /// at_ms,account,feature (may be absent), and then a column for each unit
    Plain,
}

impl Format {
    fn detect(columns: &StringRecord) -> Result<Format, TraceError> {
        let has = |name: &str| columns.iter().any(|column| column == name);
        [
            ("ContextTokens", Format::AzureLlm),
            ("timestamp_ms", Format::Mooncake),
            ("func", Format::AzureFunctions),
            ("window_start_s", Format::Servegen),
            ("at_ms", Format::Plain),
        ]
        .into_iter()
        .find(|(column, _)| has(column))
        .map(|(_, format)| format)
        .ok_or_else(|| TraceError::FormatUnknown(columns.iter().map(str::to_owned).collect()))
    }

    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::AzureLlm => "azure-llm",
            Format::Mooncake => "mooncake",
            Format::AzureFunctions => "azure-functions",
            Format::Servegen => "servegen",
            Format::Plain => "plain",
        }
    }
}

/// How much of a unit a request uses, told from its tokens: `video_seconds=output/50`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct UsageRule {
    pub unit: Arc<str>,
    amount: Amount,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    Fixed(u64),
    Input { divided_by: u64 },
    Output { divided_by: u64 },
}

impl UsageRule {
    /// The usage of one request. A part is divided by rounding up: no request is for nothing.
    pub fn apply(rules: &[UsageRule], input_tokens: u64, output_tokens: u64) -> Vec<(Arc<str>, u64)> {
        let amount = |rule: &UsageRule| match rule.amount {
            Amount::Fixed(amount) => amount,
            Amount::Input { divided_by } => input_tokens.div_ceil(divided_by),
            Amount::Output { divided_by } => output_tokens.div_ceil(divided_by),
        };
        rules.iter().map(|rule| (rule.unit.clone(), amount(rule))).collect()
    }
}

impl FromStr for UsageRule {
    type Err = String;
    fn from_str(text: &str) -> Result<UsageRule, String> {
        const FORM: &str = "expected UNIT=N, UNIT=input, UNIT=output or UNIT=output/N with N above 0";
        let (unit, amount) = text.split_once('=').ok_or(FORM)?;
        let (base, divisor) = amount.split_once('/').unwrap_or((amount, "1"));
        let divided_by: u64 = divisor.parse().ok().filter(|divisor| *divisor > 0).ok_or(FORM)?;
        let amount = match base {
            "input" => Amount::Input { divided_by },
            "output" => Amount::Output { divided_by },
            _ if amount.contains('/') => return Err(FORM.into()),
            number => Amount::Fixed(number.parse().map_err(|_| FORM)?),
        };
        if unit.is_empty() {
            return Err(FORM.into());
        }
        Ok(UsageRule { unit: unit.into(), amount })
    }
}

/// What is needed to make arrivals of a file.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Reading {
    pub path: PathBuf,
    pub format: Format,
    /// The sizes that go with a servegen trace.
    pub tokens: Option<PathBuf>,
    pub usage: Vec<UsageRule>,
    /// How many accounts share the requests of a trace that names none.
    pub accounts: u32,
    pub seed: u64,
    /// The part of the rates of a servegen trace that is drawn.
    pub scale: f64,
}

/// A trace that is open, with the rules by which it was completed.
pub(in crate::cli) struct Trace {
    pub format: Format,
    pub rules: Vec<String>,
    pub arrivals: Arrivals,
}

/// Opens a trace. Compressed files are told by their first bytes.
pub(in crate::cli) fn open(reading: &Reading) -> Result<Trace, TraceError> {
    of(Rows::open(&reading.path)?, reading)
}

/// The trace that these rows are.
pub(in crate::cli) fn of(rows: Rows, reading: &Reading) -> Result<Trace, TraceError> {
    let format = match reading.format {
        Format::Auto => Format::detect(rows.columns())?,
        named => named,
    };
    let mut rules = Vec::new();
    if matches!(format, Format::AzureLlm | Format::Mooncake) {
        rules.push(format!(
            "accounts: the trace names none; one of {} for each row by Zipf's law (exponent {ZIPF_EXPONENT}), seed {}",
            reading.accounts, reading.seed
        ));
    }
    let arrivals: Arrivals = match format {
        Format::AzureLlm => tokens_by_row(rows, reading, "TIMESTAMP", "ContextTokens", "GeneratedTokens")?,
        Format::Mooncake => tokens_by_row(rows, reading, "timestamp_ms", "input_length", "output_length")?,
        Format::AzureFunctions => functions::arrivals(rows, reading, &mut rules)?,
        Format::Servegen => servegen::arrivals(rows, reading, &mut rules)?,
        Format::Plain | Format::Auto => plain(rows)?,
    };
    Ok(Trace { format, rules, arrivals: in_order(arrivals) })
}

/// Times from zero on, and never going back.
fn in_order(arrivals: Arrivals) -> Arrivals {
    let (mut first, mut last) = (None, 0);
    Box::new(arrivals.map(move |arrival| {
        let mut arrival = arrival?;
        let first = *first.get_or_insert(arrival.at_ms);
        last = arrival.at_ms.saturating_sub(first).max(last);
        arrival.at_ms = last;
        Ok(arrival)
    }))
}

/// The rows of a CSV file with a head, one at a time.
pub(in crate::cli) struct Rows {
    reader: csv::Reader<Box<dyn Read + Send>>,
    columns: StringRecord,
    record: StringRecord,
}

impl Rows {
    pub fn open(path: &Path) -> Result<Rows, TraceError> {
        let failed = |source| TraceError::Open { path: path.to_owned(), source };
        Rows::read(BufReader::new(File::open(path).map_err(failed)?), failed)
    }

    /// The rows of what is read from here.
    pub fn read(
        mut file: impl BufRead + Send + 'static,
        failed: impl Fn(std::io::Error) -> TraceError,
    ) -> Result<Rows, TraceError> {
        let compressed = file.fill_buf().map_err(failed)?.starts_with(&GZIP_MAGIC);
        let reader: Box<dyn Read + Send> = match compressed {
            true => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            false => Box::new(file),
        };
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(reader);
        let columns = reader.headers()?.clone();
        Ok(Rows { reader, columns, record: StringRecord::new() })
    }

    pub fn columns(&self) -> &StringRecord {
        &self.columns
    }

    /// Where a column is.
    pub fn column(&self, name: &'static str) -> Result<usize, TraceError> {
        self.columns.iter().position(|column| column == name).ok_or(TraceError::ColumnMissing(name))
    }

    /// Moves to the next row; false at the end.
    pub fn advance(&mut self) -> Result<bool, TraceError> {
        Ok(self.reader.read_record(&mut self.record)?)
    }

    pub fn text(&self, column: usize) -> &str {
        self.record.get(column).unwrap_or_default()
    }

    /// The value in a column of the row.
    pub fn value<T: FromStr>(&self, column: usize) -> Result<T, TraceError> {
        let text = self.text(column);
        text.parse().map_err(|_| {
            let name = self.columns.get(column).unwrap_or_default();
            self.wrong(format!("{text:?} cannot be the {name}"))
        })
    }

    pub fn wrong(&self, what: String) -> TraceError {
        TraceError::Value { line: self.record.position().map_or(0, csv::Position::line), what }
    }

    /// The rows, each made into something.
    fn map<T>(
        mut self,
        mut make: impl FnMut(&Rows) -> Result<T, TraceError>,
    ) -> impl Iterator<Item = Result<T, TraceError>> {
        std::iter::from_fn(move || match self.advance() {
            Ok(true) => Some(make(&self)),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        })
    }
}

/// A row is a request with two sizes, and nobody's name.
fn tokens_by_row(
    rows: Rows,
    reading: &Reading,
    time: &'static str,
    input: &'static str,
    output: &'static str,
) -> Result<Arrivals, TraceError> {
    let (time, input, output) = (rows.column(time)?, rows.column(input)?, rows.column(output)?);
    let (zipf, mut chance) = (Zipf::new(reading.accounts), Chance::new(reading.seed));
    let names: Vec<Arc<str>> = (0..=reading.accounts).map(|rank| format!("u{rank}").into()).collect();
    let usage = reading.usage.clone();
    Ok(Box::new(rows.map(move |row| {
        Ok(Arrival {
            at_ms: moment_ms(row, time)?,
            account: names[zipf.draw(&mut chance)].clone(),
            feature: None,
            usage: UsageRule::apply(&usage, row.value(input)?, row.value(output)?),
        })
    })))
}

/// A time as whole milliseconds, or as a date and wall clock time, taken as UTC.
fn moment_ms(row: &Rows, column: usize) -> Result<u64, TraceError> {
    let text = row.text(column);
    if let Ok(millis) = text.parse() {
        return Ok(millis);
    }
    let wrong = || row.wrong(format!("{text:?} is no time"));
    let civil: jiff::civil::DateTime = text.parse().map_err(|_| wrong())?;
    let zoned = civil.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| wrong())?;
    u64::try_from(zoned.timestamp().as_millisecond()).map_err(|_| wrong())
}

/// Our own format: `at_ms,account[,feature]`, and every other column is a unit.
fn plain(rows: Rows) -> Result<Arrivals, TraceError> {
    let (time, account) = (rows.column("at_ms")?, rows.column("account")?);
    let feature = rows.columns().iter().position(|column| column == "feature");
    let units: Vec<(usize, Arc<str>)> = rows
        .columns()
        .iter()
        .enumerate()
        .filter(|(place, _)| *place != time && *place != account && Some(*place) != feature)
        .map(|(place, unit)| (place, unit.into()))
        .collect();
    Ok(Box::new(rows.map(move |row| {
        let mut usage = Vec::with_capacity(units.len());
        for (place, unit) in &units {
            // An empty cell is a unit that the feature of this row does not have.
            if !row.text(*place).is_empty() {
                usage.push((unit.clone(), row.value(*place)?));
            }
        }
        let feature = feature.map(|place| row.text(place)).filter(|name| !name.is_empty());
        Ok(Arrival {
            at_ms: row.value(time)?,
            account: row.text(account).into(),
            feature: feature.map(Arc::from),
            usage,
        })
    })))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;

    /// A file with this content, and what it takes to read it.
    pub(in crate::cli::replay) fn reading(content: &[u8]) -> (tempfile::NamedTempFile, Reading) {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(content).expect("written");
        let usage = ["requests=1", "input_tokens=input", "output_tokens=output"];
        let reading = Reading {
            path: file.path().to_owned(),
            format: Format::Auto,
            tokens: None,
            usage: usage.iter().map(|rule| rule.parse().expect("a rule")).collect(),
            accounts: 10,
            seed: 1,
            scale: 1.0,
        };
        (file, reading)
    }

    pub(in crate::cli::replay) fn read(reading: &Reading) -> Vec<Arrival> {
        let trace = open(reading).expect("a trace");
        trace.arrivals.map(|arrival| arrival.expect("an arrival")).collect()
    }

    fn usage(arrival: &Arrival) -> Vec<(&str, u64)> {
        arrival.usage.iter().map(|(unit, amount)| (&**unit, *amount)).collect()
    }

    #[test]
    fn reads_wall_clock_times_and_gives_every_row_an_account() {
        let (_file, reading) = reading(
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n\
              2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n",
        );
        let arrivals = read(&reading);
        assert_eq!(arrivals.iter().map(|arrival| arrival.at_ms).collect::<Vec<_>>(), [0, 4_315]);
        assert_eq!(usage(&arrivals[1]), [("requests", 1), ("input_tokens", 396), ("output_tokens", 109)]);
        assert!(arrivals[0].account.starts_with('u'));
        assert_eq!(read(&reading), arrivals, "the same seed gives the same accounts");
    }

    #[test]
    fn reads_compressed_files_by_their_first_bytes() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(b"timestamp_ms,input_length,output_length\n3000,6758,500\n").expect("compressed");
        let (_file, reading) = reading(&encoder.finish().expect("compressed"));
        let arrivals = read(&reading);
        assert_eq!(arrivals.len(), 1);
        assert_eq!(arrivals[0].at_ms, 0);
    }

    #[test]
    fn plain_traces_name_accounts_features_and_units() {
        let (_file, reading) = reading(
            b"at_ms,account,feature,requests,input_tokens,video_seconds\n\
              100,acme:u1,code.task,1,500,\n90,acme:u2,video.generate,1,,8\n",
        );
        let arrivals = read(&reading);
        assert_eq!(usage(&arrivals[0]), [("requests", 1), ("input_tokens", 500)]);
        assert_eq!(arrivals[1].feature.as_deref(), Some("video.generate"));
        assert_eq!(arrivals[1].at_ms, 0, "time does not go back");
    }

    #[test]
    fn what_cannot_be_read_is_named_with_its_line() {
        let (_file, bad_value) = reading(b"at_ms,account,requests\n1,a,1\n2,b,-1\n");
        let last = open(&bad_value).expect("a trace").arrivals.last().expect("two rows");
        assert_eq!(last.unwrap_err().to_string(), "line 3 of the trace: \"-1\" cannot be the requests");
        let (_file, unknown) = reading(b"a,b\n1,2\n");
        assert!(matches!(open(&unknown), Err(TraceError::FormatUnknown(_))));
        let missing = Reading { format: Format::Mooncake, ..unknown };
        assert!(matches!(open(&missing), Err(TraceError::ColumnMissing("timestamp_ms"))));
    }

    #[test]
    fn usage_rules_round_up_and_refuse_nonsense() {
        let rules: Vec<UsageRule> =
            ["requests=1", "video_seconds=output/50"].map(|rule| rule.parse().expect("a rule")).into();
        let usage = UsageRule::apply(&rules, 10, 51);
        assert_eq!(usage, [("requests".into(), 1), ("video_seconds".into(), 2)]);
        for text in ["", "a", "a=", "=1", "a=-1", "a=5/2", "a=input/0", "a=other"] {
            assert!(text.parse::<UsageRule>().is_err(), "{text:?}");
        }
    }
}
