package config

import (
	"fmt"
	"strings"
)

// unknown is the problem of a key that is not among keys.
func unknown(name string, keys []string) string {
	if name == "name" {
		return "unknown key: a tunnel's name stands in the header of its table, [tunnel.NAME]"
	}
	if meant := near(name, keys); meant != "" {
		return fmt.Sprintf("unknown key: did you mean %q?", meant)
	}
	return "unknown key: the keys here are " + strings.Join(keys, ", ")
}

// near is the word that name may have been meant to be: it differs by at most two
// letters, and by fewer than name has. It is empty if there is none.
func near(name string, words []string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	best, least := "", min(3, len(name))
	for _, w := range words {
		if d := distance(name, w); d < least {
			best, least = w, d
		}
	}
	return best
}

// distance counts the letters to insert, delete, change, or swap with the next one
// that lead from a to b (optimal string alignment). Names longer than any key are far
// from all.
func distance(a, b string) int {
	const long = 32
	if len(a) > long {
		return long
	}
	var rows [3][long + 1]int // before the last, the last, this
	for j := range b {
		rows[2][j+1] = j + 1
	}
	for i := range len(a) {
		rows[0], rows[1] = rows[1], rows[2]
		rows[2][0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			d := min(rows[1][j]+cost, rows[1][j+1]+1, rows[2][j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d = min(d, rows[0][j-1]+1)
			}
			rows[2][j+1] = d
		}
	}
	return rows[2][len(b)]
}
