//! How answers look to a person: aligned, calm, one subject a line.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::client::{Amount, LimitView, Payer, Payment, Problem, ProblemLayer, Receipt};
use crate::units::{Millis, Span};

/// Columns that line up. Cells are as wide as the widest of their column.
#[derive(Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: &'static [usize],
}

impl Table {
    /// A table whose named columns (from 0) are aligned to the right: numbers.
    pub fn new(right: &'static [usize]) -> Table {
        Table { rows: Vec::new(), right }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The lines, each after `indent` spaces.
    pub fn lines(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                match self.right.contains(&column) {
                    true => put(&mut line, format_args!("{cell:>width$}  ")),
                    false => put(&mut line, format_args!("{cell:<width$}  ")),
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A count with its noun: `1 plan`, `4 plans`.
pub(super) fn number_of(count: usize, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// Appends to a text, which cannot fail.
pub(super) fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    _ = text.write_fmt(what);
}

/// A JSON answer of a node, as it came, with a line's end.
pub(super) fn json(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// A length of time in its two largest parts, rounded up so that no wait is told too short.
pub(super) fn rough(span: Span) -> String {
    let unit = match span {
        Span(millis) if millis >= Span::DAY.0 => Span::HOUR,
        Span(millis) if millis >= Span::HOUR.0 => Span::MINUTE,
        _ => Span::SECOND,
    };
    Span(span.0.div_ceil(unit.0).saturating_mul(unit.0)).to_string()
}

/// A moment, and how far it is from another one.
pub(super) fn moment(at: Millis, now: Millis) -> String {
    match at.since(now) {
        Span(0) => at.to_string(),
        wait => format!("{at} (in {})", rough(wait)),
    }
}

/// A table of limits: quota, used, left, and when each is whole again.
pub(super) fn limits(limits: &[LimitView], now: Option<Millis>, indent: usize) -> String {
    let mut table = Table::new(&[2, 3, 4]);
    let head = ["limit", "unit", "quota", "used", "left", "resets"];
    table.row(head.map(str::to_owned));
    // Plans of several levels may have limits of one name.
    let levels: BTreeSet<u8> = limits.iter().map(|limit| limit.level).filter(|level| *level > 0).collect();
    for limit in limits {
        // What is whole has nothing to wait for.
        let resets = match (limit.resets_at.filter(|_| limit.used > Amount::default()), now) {
            (Some(at), Some(now)) => moment(at, now),
            (Some(at), None) => at.to_string(),
            (None, _) => String::new(),
        };
        table.row([
            limit_name(limit, levels.len() > 1),
            limit.unit.clone(),
            limit.quota.to_string(),
            limit.used.to_string(),
            limit.remaining.to_string(),
            resets,
        ]);
    }
    let mut text = table.lines(indent);
    for limit in limits {
        if let Some(base) = limit.base_quota {
            let name = limit_name(limit, levels.len() > 1);
            put(&mut text, format_args!("{:indent$}{name} is moved: by the policy it is {base}\n", ""));
        }
    }
    text
}

/// What is said behind the name of a limit that decides and does not refuse.
pub(super) fn shadow(limit: &LimitView) -> &'static str {
    if limit.shadow { " (shadow)" } else { "" }
}

fn limit_name(limit: &LimitView, with_level: bool) -> String {
    let shadow = shadow(limit);
    match limit.level {
        0 => format!("{} (cluster){shadow}", limit.name),
        level if with_level => format!("{} (level {level}){shadow}", limit.name),
        _ => format!("{}{shadow}", limit.name),
    }
}

/// Who paid how much, a line each.
pub(super) fn payments(payments: &[Payment], indent: usize) -> String {
    let mut table = Table::new(&[1]);
    for payment in payments {
        let who = match &payment.payer {
            Payer::Limit { name, .. } => format!("allowance {name}"),
            Payer::Grant { id, .. } => format!("grant {id}"),
            Payer::OtherGrants { grants, .. } => format!("{grants} other grants"),
        };
        table.row([who, payment.credits.to_string()]);
    }
    table.lines(indent)
}

/// Where and when a decision was made.
pub(super) fn receipt(receipt: &Receipt) -> String {
    // Before anything was moved there is nothing to cite.
    let load = if receipt.load > 0 { format!(", load {}", receipt.load) } else { String::new() };
    format!(
        "decided at {} (log {}.{}, term {}, policy {}{load})\n",
        receipt.at, receipt.index, receipt.position, receipt.term, receipt.policy
    )
}

/// A layer of the waterfall, and whose it is.
pub(super) fn layer(layer: &ProblemLayer) -> String {
    let mut shown = layer.kind.replace('_', " ");
    if let Some(name) = &layer.name {
        put(&mut shown, format_args!(" {name}"));
    }
    match layer.level {
        Some(0) => shown.push_str(", of the cluster"),
        Some(level) => put(&mut shown, format_args!(", of the account at level {level}")),
        None => {}
    }
    shown
}

/// A refusal: why, which layer, and when it would pass.
pub(super) fn problem(problem: &Problem) -> String {
    let mut text = format!("refused: {}\n", problem.reason_or_status());
    let detail = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
    put(&mut text, format_args!("  {detail}\n"));
    let mut facts = Table::default();
    if let Some(layer) = &problem.layer {
        facts.row(["layer".into(), self::layer(layer)]);
    }
    if let Some(field) = &problem.field {
        facts.row(["field".into(), field.clone()]);
    }
    if let Some(cost) = problem.cost {
        facts.row(["cost".into(), cost.in_words()]);
    }
    if let Some(available) = problem.available {
        facts.row(["wallet".into(), format!("{} available", available.in_words())]);
    }
    if let Some(at) = problem.would_pass_at {
        let shown = match &problem.receipt {
            Some(receipt) => moment(at, receipt.at),
            None => at.to_string(),
        };
        facts.row(["would pass".into(), shown]);
    }
    text.push_str(&facts.lines(2));
    if !problem.limits.is_empty() {
        text.push_str(&limits(&problem.limits, problem.receipt.as_ref().map(|receipt| receipt.at), 2));
    }
    if let Some(id) = &problem.id {
        put(&mut text, format_args!("  on record as {id}\n"));
    }
    if let Some(decided) = &problem.receipt {
        put(&mut text, format_args!("  {}", receipt(decided)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[1]);
        table.row(["five_hours".into(), "300".into()]);
        table.row(["promo".into(), "40".into()]);
        assert_eq!(table.lines(2), "  five_hours  300\n  promo        40\n");
    }

    #[test]
    fn waits_are_told_in_two_parts_and_never_too_short() {
        for (millis, shown) in
            [(1, "1s"), (61_000, "1m1s"), (3_600_001, "1h1m"), (90_061_000, "1d2h"), (86_399_999, "1d")]
        {
            assert_eq!(rough(Span(millis)), shown);
        }
    }
}
