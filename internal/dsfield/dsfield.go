// Package dsfield has the names of values of the TOS field, by which iproute2 reads and
// shows them: EF for 0xb8, for example.
package dsfield

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
)

// files are where iproute2 looks for the names; a newer version ships them below /usr. The
// first one that exists counts.
var files = []string{"/etc/iproute2/rt_dsfield", "/usr/share/iproute2/rt_dsfield", "/usr/lib/iproute2/rt_dsfield"}

// builtIn is the file that iproute2 ships, for hosts without one.
const builtIn = `
0x0	default
0x28	AF11
0x30	AF12
0x38	AF13
0x48	AF21
0x50	AF22
0x58	AF23
0x68	AF31
0x70	AF32
0x78	AF33
0x88	AF41
0x90	AF42
0x98	AF43
0x20	CS1
0x40	CS2
0x60	CS3
0x80	CS4
0xA0	CS5
0xC0	CS6
0xE0	CS7
0xB8	EF
`

// table has the names by value; "" for none.
type table [256]string

// names reads the table once.
var names = sync.OnceValue(func() *table {
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			return parse(data)
		}
	}
	return parse([]byte(builtIn))
})

// parse reads lines of a number and a name (rtnl_tab_initialize in lib/rt_names.c), up to
// the first one that is something else.
func parse(data []byte) *table {
	t := &table{0: "0"}
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		n, err := strconv.ParseInt(fields[0], 0, 64)
		if err != nil || len(fields) < 2 {
			break
		}
		if n >= 0 && n < int64(len(t)) {
			t[n] = fields[1]
		}
	}
	return t
}

// Parse reads a value: a name, or else a hexadecimal number, with or without 0x, up to ff
// (rtnl_dsfield_a2n in lib/rt_names.c).
func Parse(s string) (uint8, error) { return names().parse(s) }

func (t *table) parse(s string) (uint8, error) {
	for value, name := range t {
		if name != "" && name == s {
			return uint8(value), nil
		}
	}
	number := strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
	n, err := strconv.ParseUint(number, 16, 8)
	if err != nil {
		return 0, errors.New("neither a name in rt_dsfield nor a hexadecimal number up to ff")
	}
	return uint8(n), nil
}

// Name returns the name of a value; false if it has none.
func Name(value uint8) (string, bool) {
	name := names()[value]
	return name, name != ""
}
