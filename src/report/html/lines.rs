//! Lines over two axes.

use plotters::prelude::*;

use super::charts::{AXIS, Axis, FINE, GRID, LEFT, RIGHT, Scale, draw, key, letters};

const HEIGHT: u32 = 330 * FINE;

/// A line through points.
pub(crate) struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
    pub colour: RGBColor,
    pub style: Style,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Measured: every point is marked.
    Marked,
    Plain,
    /// Not measured: an ideal, a bound.
    Dashed,
}

/// Lines with their key above them.
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
            let can_be_drawn = |(at, value): &&(f64, f64)| x.has(*at) && y.has(*value);
            let points: Vec<(f64, f64)> = points.iter().filter(can_be_drawn).copied().collect();
            let line = colour.stroke_width(3 * FINE / 2);
            match style {
                Style::Dashed => {
                    chart.draw_series(DashedLineSeries::new(points, 5 * FINE, 4 * FINE, line))?;
                }
                Style::Plain => drop(chart.draw_series(LineSeries::new(points, line))?),
                Style::Marked => {
                    chart.draw_series(LineSeries::new(points.iter().copied(), line))?;
                    chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3 * FINE, colour.filled())))?;
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
            points: vec![(1.0, 1.0), (2.0, f64::NAN), (4.0, 3.5), (0.0, 2.0)],
            colour: COLOURS[0],
            style,
        };
        let chart = lines(
            "speed < ideal",
            &axis(1.0..8.0, true),
            &axis(0.0..4.0, false),
            &[line(Style::Marked), line(Style::Plain)],
        );
        assert_eq!((chart.matches("<circle").count(), chart.matches("a &amp; b").count()), (2, 2));
        assert!(chart.contains("speed &lt; ideal") && chart.contains("&lt;t&gt;"));
        for outside in ["http", "NaN", "inf", "<t>"] {
            assert!(!chart.contains(outside), "{outside}");
        }
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
