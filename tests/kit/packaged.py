"""Programs for the images of scripts/debian/package_images.py."""

from scripts.debian.package_images import EXP

DERIVES = """
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Point { x: i32, y: i32 }

fn main() {
    let text = serde_json::to_string(&Point { x: 1, y: 2 }).unwrap();
    println!("{text} {:?} {}", serde_json::from_str::<Point>(&text).unwrap(), rand::random::<u8>() as u16 <= 255);
}
"""
DERIVED = """
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Point { x: i32, y: i32 }

fn main() {
    println!("{:?}", Point { x: 1, y: 2 });
}
"""
PLAIN = DERIVED.replace(", serde::Serialize, serde::Deserialize", "")
POINT = "Point { x: 1, y: 2 }\n"
SAID = '{"x":1,"y":2} Point { x: 1, y: 2 } true\n'
CARGO = """
[package]
name = "an-app"
version = "0.1.0"
edition = "2021"

[dependencies]
serde = { version = "1.0", features = ["derive"] }
"""
IMPORTS = """
package main

import (
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/exp/maps"
	"golang.org/x/exp/slices"
)

func main() {
	keys := maps.Keys(map[string]int{"b": 1, "a": 2})
	slices.Sort(keys)
	fmt.Println(keys, len(uuid.NewString()))
}
"""
GO_OWN = "module own\n\ngo 1.21\n"
GO_MOD = f"{GO_OWN}\nrequire golang.org/x/exp {EXP}\n"
GO_MISSING = "add its module: imagegen build go --package 'golang.org/x/text/cases'\n"
