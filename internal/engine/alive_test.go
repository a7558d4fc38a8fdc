package engine_test

import (
	"log/slog"
	"testing"

	"goipip/internal/engine"
	"goipip/internal/netlab/labtest"
)

// An Engine lives while each of its loops goes round.
func TestAlive(t *testing.T) {
	for _, hangs := range []string{"none", "out", "in", "ICMP"} {
		t.Run(hangs, func(t *testing.T) {
			host, err := labtest.New(t).Host("host")
			if err != nil {
				t.Fatal(err)
			}
			var e *engine.Engine
			if err := host.Do(func() (err error) {
				e, err = engine.Open(engine.Config{Workers: 1, Log: slog.New(slog.DiscardHandler)})
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			for range 2 {
				if !e.Alive() {
					t.Error("dead before there is a loop")
				}
			}
			answered := e.Run(hangs)
			for i := range 3 {
				if alive, want := e.Alive(), i == 0 || hangs == "none"; alive != want {
					t.Errorf("question %d: alive %t, want %t", i, alive, want)
				}
				labtest.WaitFor(t, "the answers of the other loops", answered)
			}
		})
	}
}
