//! Pictures of quality against bytes, as SVG.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::FontTransform;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const SIZE: (u32, u32) = (960, 600);
const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(0x33, 0x33, 0x33);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
/// Told apart by eyes of every kind (Okabe and Ito 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];
/// More points than pixels across tell nothing.
const MAX_POINTS: usize = 2000;

/// What a picture shows. The vertical axis is logarithmic where all values are positive and far
/// apart.
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x_label: String,
    pub(crate) y_label: String,
    pub(crate) series: Vec<Series>,
    pub(crate) marks: Vec<Mark>,
    /// Texts beside points.
    pub(crate) notes: Vec<Note>,
    /// Where there is room for the names of series.
    pub(crate) legend: Legend,
}

/// Where names of series stand, at the top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Legend {
    Middle,
    Right,
}

/// Values with one name and colour.
pub(crate) struct Series {
    /// Empty for no line in the legend.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// Not sorted, finite.
    pub(crate) points: Vec<(f64, f64)>,
}

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Connected in the order of their first coordinate.
    Line,
    /// Connected likewise, and each marked.
    #[cfg_attr(
        not(feature = "models"),
        allow(dead_code, reason = "cmf eval alone measures single budgets of a file")
    )]
    Knots,
    /// Each by itself.
    #[cfg_attr(
        not(feature = "models"),
        allow(dead_code, reason = "measured values stand beside a curve in cmf eval")
    )]
    Dots,
}

/// A place on the horizontal axis with a text, and a dot where its value is known.
pub(crate) struct Mark {
    pub(crate) x: f64,
    pub(crate) y: Option<f64>,
    pub(crate) label: String,
    /// Whether something is drawn straight above it, so that the text must stand on its left.
    pub(crate) covered: bool,
}

/// A text beside a point.
#[cfg_attr(
    not(feature = "models"),
    allow(dead_code, reason = "measured values stand beside a curve in cmf eval")
)]
pub(crate) struct Note {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) text: String,
}

/// The picture as the text of an SVG file; the same for the same chart everywhere.
pub(crate) fn svg(chart: &Chart) -> anyhow::Result<String> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let points = || chart.series.iter().flat_map(|series| &series.points);
        let marks = || chart.marks.iter();
        let (x_low, x_high) = range(points().map(|p| p.0).chain(marks().map(|m| m.x)));
        let (y_low, y_high) = range(points().map(|p| p.1).chain(marks().filter_map(|m| m.y)));
        let pad = (x_high - x_low) * 0.03;
        let x = x_low - pad..x_high + pad;
        if y_low > 0.0 && y_high / y_low > 8.0 {
            let (low, high) = (y_low / 1.25, y_high * 1.25);
            let height = |y: f64| (y / low).ln() / (high / low).ln();
            draw(
                &area,
                chart,
                |builder| builder.build_cartesian_2d(x, (low..high).log_scale()),
                low,
                &height,
            )?;
        } else {
            let pad = (y_high - y_low) * 0.1;
            let low = if y_low >= 0.0 { (y_low - pad).max(0.0) } else { y_low - pad };
            let high = y_high + pad;
            let height = |y: f64| (y - low) / (high - low);
            draw(&area, chart, |builder| builder.build_cartesian_2d(x, low..high), low, &height)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(text)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;
type Built<'a, 'b, X, Y> =
    Result<Drawn<'a, 'b, X, Y>, DrawingAreaErrorKind<<SVGBackend<'b> as DrawingBackend>::ErrorType>>;

fn draw<'a, 'b, X, Y>(
    area: &'a Area<'b>,
    chart: &Chart,
    build: impl FnOnce(&mut ChartBuilder<'a, 'b, SVGBackend<'b>>) -> Built<'a, 'b, X, Y>,
    bottom: f64,
    height: &dyn Fn(f64) -> f64,
) -> anyhow::Result<()>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&chart.title, (FONT, 20).into_font().color(&INK))
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(72);
    let mut drawn = build(&mut builder).map_err(failed)?;
    drawn
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(GRID)
        .axis_style(INK)
        .x_desc(&chart.x_label)
        .y_desc(&chart.y_label)
        .axis_desc_style((FONT, 16).into_font().color(&INK))
        .label_style((FONT, 14).into_font().color(&INK))
        .x_labels(10)
        .y_labels(10)
        .x_label_formatter(&|x| label(*x))
        .y_label_formatter(&|y| label(*y))
        .draw()
        .map_err(failed)?;
    let mut has_names = false;
    for (series, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        let mut points = series.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let points = thinned(&points);
        let dots = |points: Vec<_>| points.into_iter().map(|p| Circle::new(p, 4, colour.filled()));
        if series.kind == Kind::Knots {
            drawn.draw_series(dots(points.clone())).map_err(failed)?;
        }
        let added = match series.kind {
            Kind::Line | Kind::Knots => drawn.draw_series(LineSeries::new(points, colour.stroke_width(2))),
            Kind::Dots => drawn.draw_series(dots(points)),
        };
        let added = added.map_err(failed)?;
        if !series.name.is_empty() {
            has_names = true;
            let (kind, colour) = (series.kind, *colour);
            added.label(&series.name).legend(move |(x, y)| match kind {
                Kind::Line | Kind::Knots => {
                    PathElement::new([(x, y), (x + 20, y)], colour.stroke_width(2)).into_dyn()
                }
                Kind::Dots => Circle::new((x + 10, y), 4, colour.filled()).into_dyn(),
            });
        }
    }
    let style = (FONT, 13).into_font().color(&INK);
    for mark in &chart.marks {
        let top = mark.y.unwrap_or(bottom);
        drawn
            .draw_series([PathElement::new([(mark.x, bottom), (mark.x, top)], INK.stroke_width(1))])
            .map_err(failed)?;
        if mark.y.is_some() {
            drawn.draw_series([Circle::new((mark.x, top), 5, INK.filled())]).map_err(failed)?;
        }
        // Upwards, so that the texts of neighbours do not run into each other; beside the line where
        // there is no room above its end.
        let (anchor, offset) = match height(top) > 0.5 {
            true => (HPos::Right, (-9, 10)),
            false => (HPos::Left, (if mark.covered { -9 } else { 0 }, -12)),
        };
        let style = style.clone().transform(FontTransform::Rotate270).pos(Pos::new(anchor, VPos::Center));
        let text = EmptyElement::at((mark.x, top)) + Text::new(mark.label.clone(), offset, style);
        drawn.draw_series([text]).map_err(failed)?;
    }
    let (across, down) = drawn.plotting_area().get_pixel_range();
    let points = chart.series.iter().filter(|series| series.kind != Kind::Line).flat_map(|s| &s.points);
    let dots = points.map(|point| Extent::around(drawn.backend_coord(point), 5, 5));
    let mut places = Places { inside: (across, down), taken: dots.collect() };
    for note in &chart.notes {
        let width =
            LETTER_WIDTH * i32::try_from(note.text.chars().count()).unwrap_or(i32::MAX / LETTER_WIDTH);
        let offset = places.take(drawn.backend_coord(&(note.x, note.y)), (width, LINE_HEIGHT));
        let style = style.clone().pos(Pos::new(HPos::Center, VPos::Center));
        let text = EmptyElement::at((note.x, note.y)) + Text::new(note.text.clone(), offset, style);
        drawn.draw_series([text]).map_err(failed)?;
    }
    if has_names {
        drawn
            .configure_series_labels()
            .position(match chart.legend {
                Legend::Middle => SeriesLabelPosition::UpperMiddle,
                Legend::Right => SeriesLabelPosition::UpperRight,
            })
            .background_style(WHITE.mix(0.85))
            .border_style(GRID)
            .label_font((FONT, 14).into_font().color(&INK))
            .draw()
            .map_err(failed)?;
    }
    Ok(())
}

/// Of a text of 13 pixels, nearly.
const LETTER_WIDTH: i32 = 8;
const LINE_HEIGHT: i32 = 14;

/// A rectangle of pixels.
#[derive(Clone, Copy)]
struct Extent {
    left: i32,
    top: i32,
    right: i32,
    bottom: i32,
}

impl Extent {
    /// The one whose edges are at most `x` and `y` away from its middle.
    fn around(middle: (i32, i32), x: i32, y: i32) -> Self {
        Self { left: middle.0 - x, top: middle.1 - y, right: middle.0 + x, bottom: middle.1 + y }
    }

    fn meets(&self, other: &Self) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }
}

/// Where texts beside points may stand.
struct Places {
    /// Pixels across and down.
    inside: (std::ops::Range<i32>, std::ops::Range<i32>),
    /// Dots, and texts that have their place.
    taken: Vec<Extent>,
}

impl Places {
    /// Where the middle of a text of this width and height lies, seen from its point: the first place
    /// around it that nothing else has, or on its right where there is none.
    fn take(&mut self, point: (i32, i32), size: (i32, i32)) -> (i32, i32) {
        let (x, y) = (size.0 / 2 + 7, size.1 / 2 + 6);
        let offsets = [(x, 0), (-x, 0), (0, -y), (0, y), (x, -y), (x, y), (-x, -y), (-x, y)];
        let extent = |offset: (i32, i32)| {
            Extent::around((point.0 + offset.0, point.1 + offset.1), size.0 / 2, size.1 / 2)
        };
        let is_free = |offset: &(i32, i32)| {
            let own = extent(*offset);
            let (across, down) = &self.inside;
            let inside = own.left >= across.start
                && own.right <= across.end
                && own.top >= down.start
                && own.bottom <= down.end;
            inside && !self.taken.iter().any(|other| own.meets(other))
        };
        let offset = offsets.into_iter().find(is_free).unwrap_or((x, 0));
        self.taken.push(extent(offset));
        offset
    }
}

/// Smallest and largest value; never the same.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    match (low.is_finite(), low < high) {
        (false, _) => (0.0, 1.0),
        (true, false) => (low - low.abs().max(1.0) * 0.1, low + low.abs().max(1.0) * 0.1),
        (true, true) => (low, high),
    }
}

/// At most [`MAX_POINTS`] of them and the last, evenly.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MAX_POINTS).max(1);
    let mut thin: Vec<_> = points.iter().step_by(step).copied().collect();
    if let (Some(last), true) = (points.last(), points.len() % step != 1 % step) {
        thin.push(*last);
    }
    thin
}

/// A number at an axis.
fn label(value: f64) -> String {
    let text = match value.abs() {
        0.0 => return "0".into(),
        size if size < 1e-4 => format!("{value:.1e}"),
        size if size < 10.0 => format!("{value:.5}"),
        _ => format!("{value:.1}"),
    };
    match text.contains('.') && !text.contains('e') {
        true => text.trim_end_matches('0').trim_end_matches('.').into(),
        false => text,
    }
}

fn failed<E: std::error::Error + Send + Sync>(error: DrawingAreaErrorKind<E>) -> anyhow::Error {
    anyhow::anyhow!("picture: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Chart {
        Chart {
            title: "a & b".into(),
            x_label: "MB".into(),
            y_label: "loss".into(),
            series: vec![Series { name: "model".into(), kind: Kind::Line, points }],
            marks: vec![
                Mark { x: 3.0, y: Some(2.0), label: "3 MB".into(), covered: false },
                Mark { x: 1.0, y: None, label: "<1 MB".into(), covered: true },
            ],
            notes: vec![Note { x: 2.0, y: 1.0, text: "Q&4".into() }],
            legend: Legend::Right,
        }
    }

    #[test]
    fn texts_are_escaped_and_marks_named() -> anyhow::Result<()> {
        for points in [vec![(1.0, 100.0), (2.0, 3.0), (4.0, 0.5)], vec![(1.0, -1.0)], vec![]] {
            let text = svg(&chart(points))?;
            assert!(text.starts_with("<svg ") && text.trim_end().ends_with("</svg>"));
            assert!(
                text.contains("a &amp; b")
                    && text.contains("Q&amp;4")
                    && text.contains("3 MB")
                    && text.contains("&lt;1 MB"),
                "{text}"
            );
        }
        Ok(())
    }

    #[test]
    fn the_same_chart_is_the_same_picture() -> anyhow::Result<()> {
        let points: Vec<_> = (0..50_000).map(|i| (f64::from(i), 1.0 / f64::from(i + 1))).collect();
        let (one, two) = (svg(&chart(points.clone()))?, svg(&chart(points.clone()))?);
        assert_eq!(one, two);
        assert!(one.len() < 100_000, "{}", one.len());
        assert_eq!(thinned(&points).last(), points.last());
        Ok(())
    }

    #[test]
    fn texts_of_neighbours_do_not_overlap() {
        let points = [(50, 50), (60, 52), (56, 50), (96, 50)];
        let dots = points.map(|point| Extent::around(point, 5, 5));
        let mut places = Places { inside: (0..100, 0..100), taken: dots.to_vec() };
        for point in points {
            places.take(point, (20, LINE_HEIGHT));
        }
        let texts = &places.taken[dots.len()..];
        for (i, text) in texts.iter().enumerate() {
            assert!(!places.taken[..dots.len() + i].iter().any(|other| text.meets(other)), "{i}");
            assert!(text.right <= 100);
        }
    }

    #[test]
    fn labels_are_short() {
        for (value, text) in
            [(0.0, "0"), (0.5, "0.5"), (10.0, "10"), (120.0, "120"), (1e-5, "1.0e-5"), (2.25, "2.25")]
        {
            assert_eq!(label(value), text);
        }
    }
}
