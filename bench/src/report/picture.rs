// SPDX-License-Identifier: GPL-2.0

//! What the pictures share: SVG with a title and a legend on top.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub const MARGIN: i32 = 16;
pub const TEXT: i32 = 16;
const TITLE: i32 = 22;
const LINE: i32 = 20;

/// A line of the legend.
pub struct Key {
    pub mark: Mark,
    pub colour: RGBColor,
    pub text: String,
}

#[derive(Clone, Copy)]
pub enum Mark {
    /// A filled box.
    Bar,
    /// An upright stroke.
    Limit,
    /// A line with a point on it.
    Curve,
}

/// An SVG image, drawn upon white.
pub fn svg(size: (i32, i32), draw: impl FnOnce(&Area) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    let size = (size.0 as u32, size.1 as u32);
    {
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        root.fill(&WHITE)?;
        draw(&root)?;
        root.present()?;
    }
    Ok(svg)
}

pub fn style(size: i32, h_pos: HPos) -> TextStyle<'static> {
    let style = TextStyle::from(("sans-serif", size).into_font());
    style.pos(Pos::new(h_pos, VPos::Center))
}

/// How wide a text is at most, in the usual fonts: what draws it in the end is not known here.
pub fn width(text: &str) -> i32 {
    text.chars().count() as i32 * TEXT / 2
}

pub fn widest<'a>(texts: impl IntoIterator<Item = &'a str>) -> i32 {
    texts.into_iter().map(width).max().unwrap_or(0)
}

pub fn header_height(keys: &[Key]) -> i32 {
    MARGIN + (keys.len() as i32 * LINE).max(TITLE + LINE) + MARGIN
}

/// Title and remark on the left, the legend on the right.
pub fn header(root: &Area, title: &str, remark: &str, keys: &[Key]) -> Result<()> {
    let text = style(TEXT, HPos::Left);
    let first = MARGIN + LINE / 2;
    root.draw(&Text::new(title, (MARGIN, first), style(TITLE, HPos::Left)))?;
    root.draw(&Text::new(remark, (MARGIN, first + TITLE), text.clone()))?;

    let (full, _) = root.dim_in_pixel();
    let names = full as i32 - MARGIN - widest(keys.iter().map(|key| key.text.as_str()));
    for (key, line) in keys.iter().zip(0..) {
        let y = first + line * LINE;
        draw_mark(root, key, (names - 20, y))?;
        root.draw(&Text::new(key.text.as_str(), (names, y), text.clone()))?;
    }
    Ok(())
}

fn draw_mark(root: &Area, key: &Key, (x, y): (i32, i32)) -> Result<()> {
    let colour = key.colour.filled();
    match key.mark {
        Mark::Bar => root.draw(&Rectangle::new([(x - 8, y - 6), (x + 8, y + 6)], colour))?,
        Mark::Limit => limit(root, key.colour, (x, y))?,
        Mark::Curve => {
            let line = vec![(x - 14, y), (x + 14, y)];
            root.draw(&PathElement::new(line, key.colour.stroke_width(2)))?;
            root.draw(&Circle::new((x, y), 3, colour))?;
        }
    }
    Ok(())
}

/// The mark at the highest ratio allowed.
pub fn limit(root: &Area, colour: RGBColor, (x, y): (i32, i32)) -> Result<()> {
    root.draw(&Rectangle::new(
        [(x - 1, y - 9), (x + 1, y + 9)],
        colour.filled(),
    ))?;
    Ok(())
}

#[cfg(test)]
pub mod tests {
    /// The texts of a picture, which is XML.
    pub fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).expect("XML");
        let texts = document
            .descendants()
            .filter(|node| node.has_tag_name("text"));
        texts
            .filter_map(|node| Some(node.text()?.trim().to_owned()))
            .collect()
    }
}
