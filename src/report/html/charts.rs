//! Charts as inline SVG, drawn with plotters: rows of bars over one axis here, lines over two axes in `lines`.
//!
//! Refuses to do: knowing the meaning of the data. NaNs and infinities are left out.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::combinators::{IntoLogRange, LogCoord};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::html::page::escape;

/// Plotters draws at integer coordinates; this many of them are one CSS pixel.
pub(super) const FINE: u32 = 2;
pub(super) const WIDTH: u32 = 760 * FINE;
/// The margins for labels on the left and notes on the right.
pub(super) const LEFT: u32 = 110 * FINE;
pub(super) const RIGHT: u32 = 70 * FINE;
const ROW: u32 = 18 * FINE;
pub(super) const AXIS: u32 = 24 * FINE;
/// The font size in plotters' units.
const LETTERS: u32 = 13 * FINE;

const TEXT: RGBColor = RGBColor(0x22, 0x22, 0x22);
pub(super) const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);
/// The colour of an empty row.
const GROUND: RGBColor = RGBColor(0xf0, 0xf0, 0xf0);
const MARK: RGBColor = RGBColor(0, 0, 0);

/// Colours that people with colour blindness can distinguish (Okabe and Ito).
pub(crate) const COLOURS: [RGBColor; 7] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xe6, 0x9f, 0x00),
    RGBColor(0x00, 0x9e, 0x73),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x56, 0xb4, 0xe9),
    RGBColor(0xcc, 0x79, 0xa7),
    RGBColor(0x66, 0x66, 0x66),
];

/// An axis of numbers.
pub(crate) struct Axis<'a> {
    /// The title, with the unit.
    pub title: &'a str,
    pub range: Range<f64>,
    /// A logarithmic range starts above 0.
    pub logarithmic: bool,
    /// The positions of labels; if empty, labels are at round numbers.
    pub ticks: Vec<f64>,
    pub label: &'a dyn Fn(f64) -> String,
}

/// A row of bars.
#[derive(Default)]
pub(crate) struct Row {
    pub name: String,
    pub bars: Vec<Bar>,
    /// The positions of vertical lines.
    pub marks: Vec<f64>,
    /// The text on the right.
    pub note: String,
}

pub(crate) struct Bar {
    pub range: Range<f64>,
    /// The part of the height of the row, from the bottom.
    pub height: Range<f64>,
    pub colour: RGBColor,
}

/// The legend of the colours of a chart.
pub(crate) fn key<'a>(entries: impl IntoIterator<Item = (&'a str, RGBColor)>) -> String {
    let entry = |(name, RGBColor(red, green, blue)): (&str, RGBColor)| {
        format!("<span><i style=\"background:rgb({red},{green},{blue})\"></i>{}</span> ", escape(name))
    };
    format!("<p class=\"key\">{}</p>\n", entries.into_iter().map(entry).collect::<String>())
}

/// Draws rows of bars; `labelled` adds labels along the axis.
pub(crate) fn bars(title: &str, axis: &Axis<'_>, labelled: bool, rows: &[Row]) -> String {
    let count = rows.len().max(1);
    let below = if labelled { AXIS } else { 2 * FINE };
    draw(title, count as u32 * ROW + below, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_left(LEFT)
            .margin_right(RIGHT)
            .x_label_area_size(below)
            .build_cartesian_2d(Scale::of(axis), 0.0..count as f64)?;
        if labelled {
            chart
                .configure_mesh()
                .x_desc(axis.title)
                .disable_y_mesh()
                .disable_y_axis()
                .label_style(letters())
                .axis_style(GRID.stroke_width(FINE))
                .bold_line_style(GRID.stroke_width(1))
                .max_light_lines(0)
                .set_all_tick_mark_size(3 * FINE)
                .x_label_formatter(&|at| (axis.label)(*at))
                .draw()?;
        }
        for (row, below) in rows.iter().zip((0..count).rev()) {
            // The gap between two rows is a third of a row.
            let height = |share: f64| below as f64 + 1.0 / 6.0 + share.clamp(0.0, 1.0) * 2.0 / 3.0;
            let (from, to) = (axis.range.start, axis.range.end);
            if labelled {
                let ground = [(from, height(0.0)), (to, height(1.0))];
                chart.draw_series([Rectangle::new(ground, GROUND.filled())])?;
            }
            let drawn =
                row.bars.iter().filter(|bar| bar.range.start < bar.range.end && bar.height.start < bar.height.end);
            chart.draw_series(drawn.map(|Bar { range, height: of_row, colour }| {
                let corner = |at: f64, share: f64| (at.clamp(from, to), height(share));
                let corners = [corner(range.start, of_row.start), corner(range.end, of_row.end)];
                Rectangle::new(corners, colour.filled())
            }))?;
            let marks = row.marks.iter().filter(|at| axis.has(**at));
            chart.draw_series(marks.map(|at| {
                PathElement::new([(*at, height(0.0)), (*at, height(1.0))], MARK.stroke_width(3 * FINE / 2))
            }))?;
            let middle = ((count - 1 - below) as u32 * ROW + ROW / 2) as i32;
            let beside = |h_pos| letters().pos(Pos::new(h_pos, VPos::Center));
            area.draw_text(&row.name, &beside(HPos::Right), ((LEFT - 6 * FINE) as i32, middle))?;
            area.draw_text(&row.note, &beside(HPos::Left), ((WIDTH - RIGHT + 6 * FINE) as i32, middle))?;
        }
        Ok(())
    })
}

pub(super) fn letters() -> TextStyle<'static> {
    TextStyle::from(("sans-serif", LETTERS).into_font()).color(&TEXT)
}

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
pub(super) type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

/// Draws an image for inclusion in a page.
pub(super) fn draw(title: &str, height: u32, draw: impl for<'a> FnOnce(&Area<'a>) -> Drawn<'a>) -> String {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
    draw(&area).and_then(|()| area.present()).expect("drawing to a string cannot fail");
    drop(area);
    // The image scales to the width of the page.
    let (_, drawn) = svg.split_once('>').unwrap_or_default();
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">{drawn}", escape(title))
}

impl Axis<'_> {
    pub fn has(&self, at: f64) -> bool {
        at.is_finite() && (at > 0.0 || !self.logarithmic)
    }
}

/// The mapping of an axis to the image.
pub(super) struct Scale {
    lies: Lies,
    ticks: Vec<f64>,
}

enum Lies {
    Linear(RangedCoordf64),
    Logarithmic(LogCoord<f64>),
}

impl Scale {
    pub fn of(axis: &Axis<'_>) -> Scale {
        let Range { start, end } = axis.range;
        let start = if axis.has(start) { start } else { 1.0 };
        // An axis has a positive length even if it has no data.
        let end = if end > start && end.is_finite() { end } else { start + start.abs().max(1.0) };
        let lies = match axis.logarithmic {
            true => Lies::Logarithmic((start..end).log_scale().into()),
            false => Lies::Linear((start..end).into()),
        };
        Scale { lies, ticks: axis.ticks.clone() }
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, at: &f64, limit: (i32, i32)) -> i32 {
        match &self.lies {
            Lies::Linear(scale) => scale.map(at, limit),
            Lies::Logarithmic(scale) => scale.map(at, limit),
        }
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match &self.lies {
            _ if !self.ticks.is_empty() => self.ticks.clone(),
            Lies::Linear(scale) => scale.key_points(hint),
            Lies::Logarithmic(scale) => scale.key_points(hint),
        }
    }

    fn range(&self) -> Range<f64> {
        match &self.lies {
            Lies::Linear(scale) => scale.range(),
            Lies::Logarithmic(scale) => scale.range(),
        }
    }
}

impl ValueFormatter<f64> for Scale {}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn axis(range: Range<f64>, logarithmic: bool) -> Axis<'static> {
        Axis { title: "<t>", range, logarithmic, ticks: Vec::new(), label: &|at| format!("{at}") }
    }

    #[test]
    fn bars_stay_within_their_axis_and_empty_ones_are_not_drawn() {
        let bar = |range: Range<f64>| Bar { range, height: 0.0..1.0, colour: COLOURS[1] };
        let bars_of_row = vec![bar(0.0..5.0), bar(5.0..5.0), bar(5.0..f64::NAN), bar(6.0..1e9)];
        let row = Row { name: "rank 0".into(), bars: bars_of_row, marks: vec![3.0], note: "50 %".into() };
        let chart = bars("t", &axis(0.0..10.0, false), false, &[row]);
        assert_eq!(chart.matches("<rect").count(), 2);
        let right = WIDTH - RIGHT;
        for rect in chart.split("<rect").skip(1) {
            let number = |name: &str| -> u32 {
                let (_, rest) = rect.split_once(&format!(" {name}=\"")).unwrap();
                rest.split('"').next().unwrap().parse().unwrap()
            };
            assert!(number("x") >= LEFT && number("x") + number("width") <= right, "{rect}");
        }
        assert!(chart.contains("rank 0") && chart.contains("50 %"));
    }

    #[test]
    fn axes_without_a_length_are_drawn_too() {
        for range in [0.0..0.0, 5.0..1.0, f64::NAN..f64::NAN, 0.0..f64::INFINITY] {
            for logarithmic in [false, true] {
                let axis = || axis(range.clone(), logarithmic);
                let chart = bars("t", &axis(), true, &[]);
                assert!(!chart.contains("NaN"), "{range:?}");
            }
        }
    }
}
