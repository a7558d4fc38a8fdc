package oracle_test

import (
	"flag"
	"slices"
	"testing"

	"goipip/internal/netlab/labtest"
	run "goipip/internal/tunnel"
)

var (
	seed      = flag.Uint64("oracle.seed", 1, "of the mutations")
	mutations = flag.Int("oracle.n", 140_000, "how many mutations, most of them with the fast path")
)

func TestOracle(t *testing.T) {
	labtest.Need(t, rigNeeds...)
	t.Run("engine", func(t *testing.T) { newRig(t, run.FastOff).testTables(t, *mutations/5) })
	t.Run("fast path", func(t *testing.T) {
		labtest.Need(t, "bpf")
		r := newRig(t, run.FastOn)
		r.testTables(t, *mutations*4/5)
		r.testPaths(t) // which are the engine's in any case
		r.testCarried(t)
	})
	for _, d := range differences {
		t.Logf("%s, %s: %d times", d.rule, d.what, d.used)
		if d.used == 0 {
			t.Errorf("%s: there is no difference any more: %s", d.rule, d.what)
		}
	}
	for _, d := range countDifferences {
		t.Logf("%s, %s: %d times", d.rule, d.what, d.used)
		if d.used == 0 {
			t.Errorf("%s: there is no difference any more: %s", d.rule, d.what)
		}
	}
}

// testCarried fails unless the kernel has carried a good part of all packets by itself.
func (r *rig) testCarried(t *testing.T) {
	if err := r.goipip.stop(); err != nil {
		t.Error(err)
	}
	for dir, n := range r.goipip.carried {
		t.Logf("%s: the fast path has carried %d packets of %d", direction(dir), n, r.sent[dir])
		if n < r.sent[dir]/4 {
			t.Errorf("%s: the fast path has carried %d packets of %d only", direction(dir), n, r.sent[dir])
		}
	}
}

// testTables compares the tables, and n mutations.
func (r *rig) testTables(t *testing.T, n int) {
	mut := newMutator(*seed)
	if testing.Short() {
		n /= 10
	}
	for _, c := range slices.Concat(configurations, anyConfigurations) {
		t.Run(c.name, func(t *testing.T) {
			r.begin(t)
			r.configure(c)
			for _, dir := range []direction{encap, decap} {
				t.Run(dir.String(), func(t *testing.T) {
					r.counted(t, r.table(dir), r.compareByRule)
					t.Run("mutations", func(t *testing.T) {
						r.counted(t, mut.inputs(dir, n/(len(configurations)+len(anyConfigurations))/2), r.compare)
					})
				})
			}
		})
	}
	for _, c := range []tunnel{configurations[0], configurations[3]} {
		t.Run(c.name+", direct", func(t *testing.T) {
			r.begin(t)
			r.configure(c)
			r.direct(func() {
				r.counted(t, r.directTable(), r.compareByRule)
				t.Run("mutations", func(t *testing.T) { r.counted(t, mut.direct(n/10), r.compare) })
			})
		})
	}
}

// testPaths compares what comes of paths that are narrow or gone, and of ICMP errors.
func (r *rig) testPaths(t *testing.T) {
	for _, c := range pathConfigurations {
		t.Run(c.name, func(t *testing.T) {
			r.begin(t)
			r.configure(c)
			r.compareByRule(t, r.pathTable())
		})
	}
	for _, c := range []tunnel{configurations[0], anyConfigurations[0]} {
		t.Run(c.name+", no way", func(t *testing.T) {
			r.begin(t)
			r.configure(c)
			r.testNoWay(t)
		})
	}
	for _, c := range slices.Concat(configurations[:2], anyConfigurations[1:]) {
		t.Run(c.name+", ICMP", func(t *testing.T) {
			r.begin(t)
			r.configure(c)
			r.script(expireScript)
			teller := teller{tags: &r.tags}
			for _, s := range teller.all() {
				r.tell(t, s)
			}
		})
	}
}
