// Package bench measures goipip: its functions by themselves, and whole tunnels
// beside their peers, from the bare cable to the program that one writes first.
//
//	go test -bench . ./bench                                # everything, in a minute
//	go test -bench Tunnel/load=tcp1 -benchtime 3x ./bench   # one load, three pieces over each peer
//	go test -bench Engine/load=tcp1 -cpuprofile cpu.out ./bench
//
// A machine is never quiet, so figures compare only side by side. -count repeats
// one peer before it comes to the next; for rounds in which the peers take turns,
// repeat the whole, and let benchstat make medians of it:
//
//	go test -c ./bench
//	for i in 1 2 3 4 5; do ./bench.test -test.run ^$ -test.bench Tunnel; done | tee rounds.out
//	go run golang.org/x/perf/cmd/benchstat@latest -col /peer rounds.out
//
// One more comparison is one more entry in the table of peers or in that of loads.
package bench
