// Command rules reads what go test -json prints, shows how it went, and at the end,
// for each rule of docs/rules.md, how the tests went that carry its id in their
// names. With -into it also puts that table into another file.
//
//	go test -json ./... | go run ./internal/rules docs/rules.md
//
// It ends with status 1 when a test failed, or when a rule has no test.
package main

import (
	"flag"
	"fmt"
	"os"
)

func main() {
	into := flag.String("into", "", "Markdown `file` to put the table into, between its marks")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go test -json ./... | rules [-into FILE] RULES.md")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ok, err := run(flag.Arg(0), *into)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rules:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

func run(path, into string) (ok bool, err error) {
	rules, err := readRules(path)
	if err != nil {
		return false, err
	}
	r := newResults(os.Stdout)
	if err := r.read(os.Stdin); err != nil {
		return false, err
	}
	rows, ok := table(rules, r.tallies)
	fmt.Printf("\n%s\n%s\n", rows, r.summary())
	if into != "" {
		err = putInto(into, rows)
	}
	return ok && r.ok(), err
}
