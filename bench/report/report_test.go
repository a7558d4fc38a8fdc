package main

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what report makes of testdata to testdata")

// TestRun compares the report on testdata/rounds.txt with the one beside it.
func TestRun(t *testing.T) {
	dir := t.TempDir()
	if *update {
		dir = "testdata"
	} else if err := os.WriteFile(filepath.Join(dir, "rounds.txt"), load(t, "testdata", "rounds.txt"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "chart.svg", "scale.svg"} {
		got, want := load(t, dir, name), load(t, "testdata", name)
		if diff := cmp.Diff(string(want), string(got)); diff != "" {
			t.Errorf("%s (-want +got); go test ./bench/report -update takes it over:\n%s", name, diff)
		}
	}
}

func load(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerdicts(t *testing.T) {
	r := testRounds(t)
	got := map[string]string{}
	for _, v := range r.verdicts() {
		got[v.What] = v.Reached + " " + v.Holds
	}
	for what, want := range map[string]string{
		"one TCP stream, of naive":                "3.14× yes", // 2.2 of 0.7
		"one TCP stream, of socat":                "– –",
		"UDP of 64 bytes, of naive":               "1.25× **no**", // 90 of 72
		"CPU seconds per GB, of naive":            "0.29× yes",    // 4 of 14
		"idle ping, median, of naive":             "0.80× yes",
		"heap allocations in a packet's way":      "0 yes",
		"peak memory of a tunnel, over all loads": "11.0 MiB yes",
	} {
		if got[what] != want {
			t.Errorf("%s: %q, want %q", what, got[what], want)
		}
	}
}

func testRounds(t *testing.T) *rounds {
	t.Helper()
	r, err := read(strings.NewReader(string(load(t, "testdata", "rounds.txt"))), "rounds.txt")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestChartIsXML is for what the names of machines may contain.
func TestChartIsXML(t *testing.T) {
	r := testRounds(t)
	r.config["cpu"] = `<CPU> & "more"`
	chart, err := r.chart(peerPicture)
	if err != nil {
		t.Fatal(err)
	}
	d := xml.NewDecoder(strings.NewReader(string(chart)))
	for err == nil {
		_, err = d.Token()
	}
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestReadRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":           "PASS\n",
		"a result cut off":  "BenchmarkEncap/64-2 100\n",
		"no number in time": "BenchmarkEncap/64-2 100 x ns/op\n",
	} {
		if _, err := read(strings.NewReader(text), "rounds.txt"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestDigits3(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.0123: "0.012", 0.5: "0.500", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 123456: "123456",
	} {
		if got := digits3(v); got != want {
			t.Errorf("digits3(%v) = %s, want %s", v, got, want)
		}
	}
}
