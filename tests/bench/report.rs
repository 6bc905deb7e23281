//! Medians, ratios and aims as Markdown tables.

use std::fmt;

use crate::measures::Figures;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Aim {
    /// Of the ratio to the first server that Tidings is compared with.
    AtLeast(f64),
    AtMost(f64),
    /// Of the figure itself.
    Below(f64),
    /// Something that is not computed here.
    Text(&'static str),
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(ratio) => write!(f, ">= {ratio}"),
            Self::AtMost(ratio) => write!(f, "<= {ratio}"),
            Self::Below(figure) => write!(f, "< {figure}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

impl Aim {
    fn is_missed(self, figure: f64, ratio: f64) -> bool {
        match self {
            Self::AtLeast(aim) => ratio < aim,
            Self::AtMost(aim) => ratio > aim,
            Self::Below(aim) => figure >= aim,
            Self::Text(_) => false,
        }
    }
}

/// Aims by the name of the figure; the empty name is for all.
pub(crate) type Aims = &'static [(&'static str, Aim)];

/// The figures of one measure, of each server in each round.
pub(crate) struct Samples {
    servers: usize,
    figures: Vec<(String, Vec<Vec<f64>>)>,
}

impl Samples {
    pub(crate) fn new(servers: usize) -> Self {
        Self { servers, figures: Vec::new() }
    }

    pub(crate) fn add(&mut self, server: usize, figures: Figures) {
        for (name, value) in figures {
            let at = self.figures.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                self.figures.push((name, vec![Vec::new(); self.servers]));
                self.figures.len() - 1
            });
            self.figures[at].1[server].push(value);
        }
    }

    /// Prints a row for each figure; `columns` are those of servers.
    pub(crate) fn print(self, measure: &str, columns: usize, aims: Aims) {
        for (name, samples) in self.figures {
            let medians: Vec<_> = samples.into_iter().map(median).collect();
            let column = |server: usize| medians.get(server).copied().flatten();
            let ratio = |server| Some(column(0)? / column(server)?);
            let figures = (0..columns).map(|server| column(server).map_or(String::new(), shown));
            let ratios = (1..columns).map(|server| ratio(server).map_or(String::new(), |ratio| format!("{ratio:.2}")));
            let cells: Vec<_> = figures.chain(ratios).collect();
            let aim = aims.iter().find(|(figure, _)| *figure == name || figure.is_empty()).map(|(_, aim)| *aim);
            let missed = aim
                .is_some_and(|aim| column(0).is_some_and(|figure| aim.is_missed(figure, ratio(1).unwrap_or(f64::NAN))));
            let aim = aim.map_or(String::new(), |aim| aim.to_string());
            let aim = if missed { format!("{aim}, missed") } else { aim };
            println!("| {measure}: {name} | {} | {aim} |", cells.join(" | "));
        }
    }
}

fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}

fn shown(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
