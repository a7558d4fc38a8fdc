package config

import (
	"fmt"
	"strings"
)

// Reference returns docs/config.md with its tables of keys as they are in this package.
func Reference(doc string) string {
	for where, rows := range map[string]string{"tunnel": reference(tunnelKeys), "route": reference(routeKeys), "process": reference(processKeys)} {
		begin, end := "<!-- keys: "+where+" -->\n", "<!-- end -->\n"
		before, rest, ok := strings.Cut(doc, begin)
		_, after, closed := strings.Cut(rest, end)
		if ok && closed {
			doc = before + begin + "| key | type | value | default |\n|---|---|---|---|\n" + rows + end + after
		}
	}
	return doc
}

func reference[T any](keys []key[T]) string {
	var b strings.Builder
	for _, k := range keys {
		kind, _, _ := strings.Cut(strings.ReplaceAll(" "+k.want, " a ", " "), ",")
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", k.name, kind[1:], k.value, k.initial)
	}
	return strings.ReplaceAll(b.String(), "|  |", "| |")
}
