package main

// scaleSizes are the numbers of tunnels in one process that are measured.
var scaleSizes = []string{"tunnels=1", "tunnels=10", "tunnels=100", "tunnels=1000"}

// scaleRows are the lines of the table of many tunnels.
var scaleRows = []row{
	{"Until all links are up", "Scale", "start-s", "s", 1},
	{"Memory of the process", "Scale", "rss-MiB", "MiB", 1},
	{"Kernel memory for each tunnel", "Scale", "slab-KiB/tunnel", "KiB", 1},
	{"Threads", "Scale", "threads", "", 1},
	{"CPU without packets", "Scale", "idle-%", "% of a core", 1},
	{"TCP, one stream over one tunnel", "Scale", "stream-Gbit/s", "Gbit/s", 1},
	{"… the same, in turns, over the only tunnel", "Scale", "alone-Gbit/s", "Gbit/s", 1},
	{"Ping through one tunnel, median", "Scale", "ping-µs", "µs", 1},
	{"TCP, 100 streams over all tunnels", "Busy", "sum-Gbit/s", "Gbit/s", 1},
	{"Reload, where one tunnel changes", "Reload", "reload-ms", "ms", 1},
	{"… packets lost on another", "Reload", "lost", "", 1},
	{"10 000 route changes: CPU in all", "Routes", "cpu-ms", "ms", 1},
	{"… longest gap between two packets 1 ms apart", "Routes", "gap-ms", "ms", 1},
	{"… the same past all tunnels", "Routes", "cable-gap-ms", "ms", 1},
}

// scaleTable returns the cells of the table of many tunnels, row by row; none if they were
// not measured.
func (r *rounds) scaleTable() [][]string {
	var lines [][]string
	known := false
	for _, row := range scaleRows {
		line := []string{row.what, row.shown}
		for _, size := range scaleSizes {
			c := cell{row.load, size, row.unit}
			_, ok := r.median[c]
			known = known || ok
			line = append(line, r.number3(c, row.scale))
		}
		lines = append(lines, line)
	}
	if !known {
		return nil
	}
	return lines
}

// scalePicture is the chart of many tunnels.
var scalePicture = picture{
	Title: "Many tunnels in one process",
	Text:  "One goipip at each end, between two namespaces of one machine, which also makes the load.",
	bars:  scaleSizes,
	panels: []panel{
		{"Start", "s until all links are up; less is better", cell{load: "Scale", unit: "start-s"}, 1},
		{"Memory of the process", "MiB; less is better", cell{load: "Scale", unit: "rss-MiB"}, 1},
		{"Threads", "less is better", cell{load: "Scale", unit: "threads"}, 1},
		{"TCP, one stream over one of them", "Gbit/s", cell{load: "Scale", unit: "stream-Gbit/s"}, 1},
		{"Ping through one of them", "µs, median; less is better", cell{load: "Scale", unit: "ping-µs"}, 1},
		{"TCP, 100 streams over all", "Gbit/s", cell{load: "Busy", unit: "sum-Gbit/s"}, 1},
	},
}
