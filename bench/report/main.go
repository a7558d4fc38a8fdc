// Command report makes of the rounds of benchmarks in a directory, rounds.txt, a
// page of tables, README.md, and two charts beside it: chart.svg of the peers, and scale.svg
// of many tunnels.
//
//	go run ./bench/report bench/results
package main

import (
	"errors"
	"log"
	"os"
	"path/filepath"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("report: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: report DIRECTORY")
	}
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(dir string) error {
	in, err := os.Open(filepath.Join(dir, "rounds.txt"))
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := read(in, in.Name())
	if err != nil {
		return err
	}
	table, err := r.table()
	if err != nil {
		return err
	}
	chart, err := r.chart(peerPicture)
	if err != nil {
		return err
	}
	scale, err := r.chart(scalePicture)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "README.md"), table, 0o644),
		os.WriteFile(filepath.Join(dir, "chart.svg"), chart, 0o644),
		os.WriteFile(filepath.Join(dir, "scale.svg"), scale, 0o644),
	)
}
