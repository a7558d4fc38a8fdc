package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// cell is one thing that was measured, once in each round.
type cell struct {
	load string // of BenchmarkTunnel, or the name of a benchmark that has no peers
	peer string // or the number of tunnels, as "tunnels=1000"
	unit string
}

// rounds is all that was measured.
type rounds struct {
	config map[string]string  // what the file says of the machine
	values map[cell][]float64 // one a round
	micro  []string           // the benchmarks without peers, in their order
	number int                // of rounds
	spread map[cell]interval  // of values
	median map[cell]float64   // of values
}

// interval is from the least to the greatest value.
type interval struct{ from, to float64 }

// anyLoad stands in a cell for the load with the greatest median.
const anyLoad = ""

// read reads the output of one or more runs of go test -bench. Its lines "key: value"
// tell of the machine: "cpu" is go test's own, make bench adds "cores", "kernel",
// "date" and "commit".
func read(in io.Reader, name string) (*rounds, error) {
	r := &rounds{config: map[string]string{}, values: map[cell][]float64{}}
	reader := benchfmt.NewReader(in, name)
	for reader.Scan() {
		switch rec := reader.Result().(type) {
		case *benchfmt.Result:
			r.add(rec)
		case *benchfmt.SyntaxError:
			return nil, rec
		}
	}
	if err := reader.Err(); err != nil {
		return nil, err
	}
	if len(r.values) == 0 {
		return nil, fmt.Errorf("read %s: no benchmark in it", name)
	}
	r.count()
	return r, nil
}

func (r *rounds) add(result *benchfmt.Result) {
	for _, c := range result.Config {
		r.config[c.Key] = string(c.Value)
	}
	load, peer := place(result.Name)
	if peer == "" && !slices.Contains(r.micro, load) {
		r.micro = append(r.micro, load)
	}
	for _, v := range result.Values {
		if v.OrigUnit != "" {
			v.Value, v.Unit = v.OrigValue, v.OrigUnit
		}
		c := cell{load, peer, v.Unit}
		r.values[c] = append(r.values[c], v.Value)
	}
}

// place returns what BenchmarkTunnel says of a result in its name, or the benchmarks of many
// tunnels, or of other benchmarks the name.
func place(name benchfmt.Name) (load, peer string) {
	base, parts := name.Parts()
	load = string(base)
	for _, part := range parts {
		p := string(part)
		switch {
		case strings.HasPrefix(p, "-"): // GOMAXPROCS
		case strings.HasPrefix(p, "/load="):
			load = strings.TrimPrefix(p, "/load=")
		case strings.HasPrefix(p, "/tunnels="):
			peer = strings.TrimPrefix(p, "/")
		case strings.HasPrefix(p, "/peer="):
			peer = strings.TrimPrefix(p, "/peer=")
		default:
			load += p
		}
	}
	return load, peer
}

// count fills what follows from the values.
func (r *rounds) count() {
	r.median, r.spread = map[cell]float64{}, map[cell]interval{}
	for c, values := range r.values {
		sorted := slices.Sorted(slices.Values(values))
		n := len(sorted)
		r.median[c] = (sorted[(n-1)/2] + sorted[n/2]) / 2
		r.spread[c] = interval{sorted[0], sorted[n-1]}
		r.number = max(r.number, n)
	}
	for c, m := range maps.Clone(r.median) {
		most := cell{anyLoad, c.peer, c.unit}
		if so, ok := r.median[most]; !ok || m > so {
			r.median[most] = m
		}
	}
}

// machine names what everything was measured on, and when.
func (r *rounds) machine() string {
	var parts []string
	for _, key := range []string{"cpu", "cores", "kernel", "date"} {
		value, ok := r.config[key]
		if !ok {
			continue
		}
		if key == "cores" {
			value += " cores"
		}
		parts = append(parts, value)
	}
	return strings.Join(parts, ", ")
}
