package netlab

import (
	"bytes"
	"strings"
	"testing"
)

func TestDatagramsTake(t *testing.T) {
	d := &datagrams{seed: 1, size: 40, seen: make([]bool, 3)}
	changed := func(i int) []byte {
		b := d.datagram(1)
		b[i] ^= 1
		return b
	}
	tests := []struct {
		name string
		b    []byte
		want string // in the error, none if empty
	}{
		{"the first to come", d.datagram(2), ""},
		{"out of order", d.datagram(0), ""},
		{"twice", d.datagram(0), "arrived twice"},
		{"changed", changed(39), "byte 39 is"},
		{"with another's index", changed(3), "byte 4 is"},
		{"cut", d.datagram(1)[:39], "39 bytes in place of 40"},
		{"cut to nothing", nil, "0 bytes"},
		{"not sent", (&datagrams{seed: 1, size: 40}).datagram(3), "not sent"},
		{"of another run", (&datagrams{seed: 2, size: 40}).datagram(1), "byte 4 is"},
		{"unharmed", d.datagram(1), ""},
	}
	for _, test := range tests {
		err := d.take(bytes.Clone(test.b))
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
		}
	}
	if d.received != 3 {
		t.Errorf("%d received, want 3", d.received)
	}
}
