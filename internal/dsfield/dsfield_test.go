package dsfield

import (
	"os"
	"testing"
)

// The built-in table is the one that iproute2 ships.
func TestBuiltIn(t *testing.T) {
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if got, want := *parse([]byte(builtIn)), *parse(data); got != want {
			t.Errorf("the built-in table is\n%q\n%s has\n%q", got, file, want)
		}
		return
	}
	t.Skip("no rt_dsfield is installed")
}

func TestParse(t *testing.T) {
	table := parse([]byte("# comment\n\n0x0 default\n 0xb8\tEF # comment\n8 eight\n300 none\n-1 none\n0x10 ten\nbroken\n0x20 never\n"))
	for s, want := range map[string]int{
		"default": 0, "0": 0, "EF": 0xb8, "ef": 0xef, "eight": 8, "ten": 0x10, "0x1f": 0x1f, "0X1F": 0x1f, "ff": 0xff,
		"": -1, "100": -1, "never": -1, "none": -1, "-1": -1, "0x": -1, "EF ": -1,
	} {
		got, err := table.parse(s)
		if (err == nil) != (want >= 0) || err == nil && int(got) != want {
			t.Errorf("%q: %#x, %v; want %#x", s, got, err, want)
		}
	}
	if parse(nil)[0] != "0" {
		t.Error("without a file, 0 has no name")
	}
}

func TestName(t *testing.T) {
	if name, ok := Name(0xb8); !ok || name != "EF" {
		t.Errorf("0xb8 is %q, %v", name, ok)
	}
	if name, ok := Name(0x11); ok {
		t.Errorf("0x11 is %q", name)
	}
}
