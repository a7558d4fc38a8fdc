//go:build linux

package main

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"goipip/internal/daemon/config"
	"goipip/internal/tunnel"

	"github.com/spf13/pflag"
)

// parse returns the tunnel that flags describe.
func parse(args ...string) (tunnel.Config, error) {
	var o options
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.register(f)
	if err := f.Parse(doubleDashes(append([]string{"-local=192.0.2.1", "-remote=192.0.2.2"}, args...))); err != nil {
		return tunnel.Config{}, err
	}
	return o.config()
}

// parsed is parse of what is right.
func parsed(t *testing.T, args ...string) tunnel.Config {
	t.Helper()
	c, err := parse(args...)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return c
}

func TestO3_TTL(t *testing.T) {
	for arg, want := range map[string]uint8{"1": 1, "64": 64, "0x40": 64, "255": 255, "inherit": 0, "0": 0} {
		if got := parsed(t, "-ttl", arg).TTL; got != want {
			t.Errorf("-ttl %s: %d, want %d", arg, got, want)
		}
	}
	if got := parsed(t).TTL; got != 0 {
		t.Errorf("without -ttl: %d, want inherit", got)
	}
	for _, arg := range []string{"256", "-1", "", "much"} {
		if _, err := parse("-ttl=" + arg); err == nil {
			t.Errorf("-ttl=%s is taken", arg)
		}
	}
	if _, err := parse("-ttl=5", "-nopmtudisc"); err == nil || !strings.HasPrefix(err.Error(), "ttl != 0 and nopmtudisc are incompatible") {
		t.Errorf("-ttl=5 -nopmtudisc: %v", err)
	}
}

func TestO4_TOS(t *testing.T) {
	for arg, want := range map[string]struct {
		tos     uint8
		inherit bool
	}{
		"00": {0, false}, "0x10": {0x10, false}, "10": {0x10, false}, "ff": {0xfe, true}, "0xB8": {0xb8, false},
		"EF": {0xb8, false}, "AF21": {0x48, false}, "inherit/EF": {0xb8, true}, "inherit": {0, true}, "inherit/10": {0x10, true}, "inherit/0xb8": {0xb8, true},
	} {
		if c := parsed(t, "-tos", arg); c.TOS != want.tos || c.InheritTOS != want.inherit {
			t.Errorf("-tos %s: %#x, inherit %v; want %+v", arg, c.TOS, c.InheritTOS, want)
		}
	}
	for _, arg := range []string{"100", "x", "", "inherit/x", "inheritance", "inheritff", "inherit/", "ef1"} {
		if _, err := parse("-tos=" + arg); err == nil {
			t.Errorf("-tos=%s is taken", arg)
		}
	}
}

func TestO10_Fwmark(t *testing.T) {
	for arg, want := range map[string]uint32{"0": 0, "7": 7, "0x7": 7, "0xffffffff": 0xffffffff} {
		if got := parsed(t, "-fwmark", arg).Mark; got != want {
			t.Errorf("-fwmark %s: %#x, want %#x", arg, got, want)
		}
	}
	for _, arg := range []string{"0x100000000", "-1", "", "blue", "1/2"} {
		if _, err := parse("-fwmark=" + arg); err == nil {
			t.Errorf("-fwmark=%s is taken", arg)
		}
	}
}

func TestO5_PMTUDisc(t *testing.T) {
	if parsed(t).NoPMTUDisc || !parsed(t, "-nopmtudisc").NoPMTUDisc {
		t.Error("pmtudisc is not the default, or -nopmtudisc does not change it")
	}
}

func TestAddresses(t *testing.T) {
	c := parsed(t, "-address", "10.0.0.1", "-peer", "10.0.0.2")
	if c.Address != netip.MustParsePrefix("10.0.0.1/32") || c.Peer != netip.MustParseAddr("10.0.0.2") {
		t.Errorf("-address A -peer B: %v, %v", c.Address, c.Peer)
	}
	if c := parsed(t, "-address", "10.0.0.1/24"); c.Address != netip.MustParsePrefix("10.0.0.1/24") {
		t.Errorf("-address A/24: %v", c.Address)
	}
}

// TestEveryFlagIsAKey holds the two surfaces together: what a flag can say, a file can.
func TestEveryFlagIsAKey(t *testing.T) {
	var flags, process []string
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(options).register(f)
	f.VisitAll(func(f *pflag.Flag) {
		switch {
		case strings.HasPrefix(f.Name, "log-"), f.Name == "metrics":
			process = append(process, f.Name)
		case f.Name == "workers": // of the process, which reads its configuration again
		case f.Name != "name": // stands in the table's header
			flags = append(flags, f.Name)
		}
	})
	keys := slices.DeleteFunc(config.Keys(), func(key string) bool { return key == "addresses" || key == "routes" })
	if !slices.Equal(flags, keys) {
		t.Errorf("flags %q, keys of a tunnel %q", flags, keys)
	}
	if !slices.Equal(process, config.ProcessKeys()) {
		t.Errorf("flags %q, keys of the process %q", process, config.ProcessKeys())
	}
}

// TestErrorsNameFlags has what Validate says with the dashes of the command line.
func TestErrorsNameFlags(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"-remote=0.0.0.0 -local=::1", "--local ::1: ipip runs over IPv4 only, and this is an IPv6 address\n--remote 0.0.0.0: not the address of one host"},
		{"-local=::1", "--local ::1: ipip runs over IPv4 only, and this is an IPv6 address"},
		{"-peer=10.0.0.2", "--peer 10.0.0.2 needs --address, the inner address of this end"},
		{"-peer=10.0.0.2 -address=10.0.0.1/24", "--address 10.0.0.1/24 with --peer: give the address without a prefix length"},
		{"-ttl=5 -nopmtudisc", "ttl != 0 and nopmtudisc are incompatible: leave out --ttl or --nopmtudisc"},
		{"-dev=a/b", `--dev "a/b": not a name that a link can have`},
	} {
		_, err := parse(strings.Fields(c.args)...)
		if !errors.As(err, new(usageError)) || err.Error() != c.want {
			t.Errorf("%s: error\n%v\nwant\n%s", c.args, err, c.want)
		}
	}
}

// A wrong value gets an error that names the flag, the value, and what it must be.
func TestFlagError(t *testing.T) {
	for arg, want := range map[string]string{
		"-cx":          "-c, --count x: must be a whole number",
		"--count=1.5":  "-c, --count 1.5: must be a whole number",
		"--count=":     `-c, --count "": must be a whole number`,
		"--size=a b":   `--size "a b": must be a whole number`,
		"--yes=maybe":  "--yes maybe: must be true or false",
		"--limit=none": "--limit none: must be 1 to 9",
		"--unknown":    "unknown flag: --unknown",
	} {
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.IntP("count", "c", 0, "")
		f.Uint16("size", 0, "")
		f.Bool("yes", false, "")
		f.Var(&numberValue{p: new(int), least: 1, most: 9}, "limit", "")
		err := f.Parse([]string{arg})
		if err == nil {
			t.Errorf("%s is taken", arg)
		} else if got := flagError(err).Error(); got != want {
			t.Errorf("%s: %s, want %s", arg, got, want)
		}
	}
}

// Long flags may have one dash; short ones with a value stay as they are.
func TestDoubleDashes(t *testing.T) {
	got := doubleDashes([]string{"-local", "-mtu=68", "--ttl", "-c", "-c10", "-w-", "-w/file", "-", "-1", "--", "-local"})
	want := []string{"--local", "--mtu=68", "--ttl", "-c", "-c10", "-w-", "-w/file", "-", "-1", "--", "-local"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
