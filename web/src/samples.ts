/** What a language's editor begins with. */

const SAMPLES: Record<string, string> = {
  rust: `use std::io::{self, Read};

fn main() {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).expect("standard input is text");
    match text.trim() {
        "" => println!("Hello, world!"),
        name => println!("Hello, {name}!"),
    }
}
`,
  go: `package main

import (
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	text, _ := io.ReadAll(os.Stdin)
	name := strings.TrimSpace(string(text))
	if name == "" {
		name = "world"
	}
	fmt.Printf("Hello, %s!\\n", name)
}
`,
  python: `import sys

name = sys.stdin.read().strip() or "world"
print(f"Hello, {name}!")
`,
  javascript: `const name = require("fs").readFileSync(0, "utf8").trim() || "world";
console.log(\`Hello, \${name}!\`);
`,
  typescript: `import { readFileSync } from "node:fs";

const name: string = readFileSync(0, "utf8").trim() || "world";
console.log(\`Hello, \${name}!\`);
`,
  c: `#include <stdio.h>

int main(void) {
    char name[100];
    if (scanf("%99[^\\n]", name) != 1) {
        puts("Hello, world!");
    } else {
        printf("Hello, %s!\\n", name);
    }
    return 0;
}
`,
  cpp: `#include <iostream>
#include <string>

int main() {
    std::string name;
    if (!std::getline(std::cin, name)) name = "world";
    std::cout << "Hello, " << name << "!\\n";
}
`,
  java: `import java.util.Scanner;

public class Main {
    public static void main(String[] args) {
        Scanner input = new Scanner(System.in);
        String name = input.hasNextLine() ? input.nextLine() : "world";
        System.out.println("Hello, " + name + "!");
    }
}
`,
};

/** A first program in the language, or nothing. */
export function sample(language: string): string {
  return SAMPLES[language] ?? "";
}
