// Package bench measures goipip: its functions by themselves, and whole tunnels
// beside their peers, from the bare cable to the program that one writes first.
//
//	go test -bench . ./bench                                # everything once, in two minutes
//	go test -bench Tunnel/load=tcp1$ -benchtime 3x ./bench  # one load, three pieces over each peer
//	go test -bench Engine/load=tcp1$ -cpuprofile cpu.out ./bench
//	go test -bench 'Scale|Busy|Reload|Routes|Scrape' -benchtime 1x ./bench  # up to 1000 tunnels in a process
//	make bench                                              # rounds, a table and a chart of them
//
// A machine is never quiet, so figures compare only side by side. -count repeats
// one peer before it comes to the next; make bench repeats the whole instead, so
// that the peers take turns, and writes all to bench/results/rounds.txt, of which
// benchstat makes medians too:
//
//	go run golang.org/x/perf/cmd/benchstat@latest -col /peer bench/results/rounds.txt
//
// With GOIPIP_BIN, the benchmarks of many tunnels run that binary, of another commit say, in
// place of one that they build.
//
// One more comparison is one more entry in the table of peers or in that of loads,
// and in the tables of bench/report.
package bench
