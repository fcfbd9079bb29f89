//! Line charts.

use std::ops::Range;

use plotters::prelude::*;

use crate::report::html::charts::{AXIS, Axis, FINE, GRID, LEFT, RIGHT, Scale, draw, key, letters};

const HEIGHT: u32 = 330 * FINE;

/// A line through points.
pub(crate) struct Series {
    pub name: String,
    pub points: Vec<Mark>,
    pub colour: RGBColor,
    pub style: Style,
}

/// A point.
pub(crate) struct Mark {
    pub at: (f64, f64),
    /// The spread along the second axis, of which the point is the median.
    pub spread: Range<f64>,
    /// Drawn hollow, to distinguish it from other points.
    pub hollow: bool,
}

impl Mark {
    pub fn exact(at: (f64, f64)) -> Mark {
        Mark { at, spread: at.1..at.1, hollow: false }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Measured values: every point is marked.
    Marked,
    /// Values that are not measured, such as an ideal or a bound.
    Dashed,
}

/// Draws lines with their legend.
pub(crate) fn lines(title: &str, x: &Axis<'_>, y: &Axis<'_>, series: &[Series]) -> String {
    let chart = draw(title, HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_top(8 * FINE)
            .margin_right(RIGHT / 2)
            .x_label_area_size(2 * AXIS)
            .y_label_area_size(LEFT / 2 + AXIS)
            .build_cartesian_2d(Scale::of(x), Scale::of(y))?;
        chart
            .configure_mesh()
            .x_desc(x.title)
            .y_desc(y.title)
            .label_style(letters())
            .axis_style(GRID.stroke_width(FINE))
            .bold_line_style(GRID.stroke_width(1))
            .max_light_lines(0)
            .set_all_tick_mark_size(3 * FINE)
            .x_label_formatter(&|at| (x.label)(*at))
            .y_label_formatter(&|at| (y.label)(*at))
            .draw()?;
        for Series { points, colour, style, .. } in series {
            let can_be_drawn = |mark: &&Mark| x.has(mark.at.0) && y.has(mark.at.1);
            let marks: Vec<&Mark> = points.iter().filter(can_be_drawn).collect();
            let line = colour.stroke_width(3 * FINE / 2);
            let places = marks.iter().map(|mark| mark.at);
            match style {
                Style::Dashed => {
                    chart.draw_series(DashedLineSeries::new(places, 5 * FINE, 4 * FINE, line))?;
                }
                Style::Marked => {
                    chart.draw_series(LineSeries::new(places, line))?;
                    let spread =
                        marks.iter().filter(|mark| y.has(mark.spread.start) && mark.spread.start < mark.spread.end);
                    chart.draw_series(spread.map(|mark| {
                        let ends = [mark.spread.start, mark.spread.end].map(|end| (mark.at.0, end));
                        PathElement::new(ends, colour.stroke_width(FINE))
                    }))?;
                    // A white disc hides the line below a hollow point.
                    let hollow = marks.iter().filter(|mark| mark.hollow);
                    chart.draw_series(hollow.map(|mark| Circle::new(mark.at, 4 * FINE, WHITE.filled())))?;
                    chart.draw_series(marks.iter().map(|mark| match mark.hollow {
                        true => Circle::new(mark.at, 4 * FINE, line),
                        false => Circle::new(mark.at, 3 * FINE, colour.filled()),
                    }))?;
                }
            }
        }
        Ok(())
    });
    let named = series.iter().filter(|series| !series.name.is_empty());
    key(named.map(|series| (series.name.as_str(), series.colour))) + &chart
}

#[cfg(test)]
mod tests {
    use super::super::charts::{COLOURS, tests::axis};
    use super::*;

    #[test]
    fn a_chart_has_its_lines_points_and_labels_and_nothing_that_is_no_number() {
        let line = |style| Series {
            name: "a & b".into(),
            points: [(1.0, 1.0), (2.0, f64::NAN), (4.0, 3.5), (0.0, 2.0)].map(Mark::exact).into(),
            colour: COLOURS[0],
            style,
        };
        let chart = lines(
            "speed < ideal",
            &axis(1.0..8.0, true),
            &axis(0.0..4.0, false),
            &[line(Style::Marked), line(Style::Dashed)],
        );
        assert_eq!((chart.matches("<circle").count(), chart.matches("a &amp; b").count()), (2, 2));
        assert!(chart.contains("speed &lt; ideal") && chart.contains("&lt;t&gt;"));
        for outside in ["http", "NaN", "inf", "<t>"] {
            assert!(!chart.contains(outside), "{outside}");
        }
    }

    #[test]
    fn hollow_marks_are_rings_and_spreads_are_bars() {
        let mark = |x, hollow| Mark { at: (x, 2.0), spread: 1.0..3.0, hollow };
        let series = Series {
            name: "s".into(),
            points: vec![mark(1.0, false), mark(2.0, true)],
            colour: COLOURS[0],
            style: Style::Marked,
        };
        let chart = |series: &[Series]| lines("t", &axis(0.0..4.0, false), &axis(0.0..4.0, false), series);
        let (drawn, empty) = (chart(std::slice::from_ref(&series)), chart(&[]));
        // A disc; and a white one below a ring.
        let ring = "fill=\"none\" stroke=\"#0072B2\"";
        let circles: Vec<&str> = drawn.split("<circle").skip(1).filter_map(|rest| rest.split("/>").next()).collect();
        assert_eq!((circles.len(), circles.iter().filter(|circle| circle.contains(ring)).count()), (3, 1));
        assert!(!empty.contains("<circle"));
    }

    #[test]
    fn axes_without_a_length_are_drawn_too() {
        for range in [0.0..0.0, 5.0..1.0, f64::NAN..f64::NAN, 0.0..f64::INFINITY] {
            for logarithmic in [false, true] {
                let axis = || axis(range.clone(), logarithmic);
                assert!(!lines("t", &axis(), &axis(), &[]).contains("NaN"), "{range:?}");
            }
        }
    }
}
