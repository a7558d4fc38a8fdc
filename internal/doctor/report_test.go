package doctor

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var results = []Result{
	{Check: "tun", Saw: "/dev/net/tun opens"},
	{Check: "route", Tunnel: "tun01", Saw: "by eth0"},
	{Check: "route", Tunnel: "tun\x1b2", Saw: "by eth1"},
	{Check: "mtu", Tunnel: "tun01", Status: Warning, Saw: "1500", Why: "too long", Cure: "--mtu 1400", Commands: []string{"ip link set tun01 mtu 1400"}},
	{Check: "mtu", Tunnel: "tun\x1b2", Saw: "1480"},
	{Check: "loop", Tunnel: "tun\x1b2", Status: Failure, Saw: "into itself", Why: "it is lost"},
}

func TestWriteText(t *testing.T) {
	const want = `ok       tun     /dev/net/tun opens
ok       route   for 2 tunnels
warning  mtu     tun01: 1500
           why   too long
           cure  --mtu 1400
           type  ip link set tun01 mtu 1400
ok       mtu     tun?2: 1480
failure  loop    tun?2: into itself
           why   it is lost
`
	var plain, colour, one bytes.Buffer
	for _, err := range []error{WriteText(&plain, results, Layout{}), WriteText(&colour, results, Layout{Colour: true}), WriteText(&one, results[:2], Layout{Width: 80})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, plain.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !strings.Contains(colour.String(), "\x1b[1;31mfailure\x1b[0m  loop    tun?2") || strings.Contains(plain.String(), "\x1b") {
		t.Errorf("in colour:\n%s", &colour)
	}
	if got := one.String(); !strings.HasSuffix(got, "\nok       route   by eth0\n") {
		t.Errorf("of one tunnel:\n%s", got)
	}
}

func TestWriteText_Wrapped(t *testing.T) {
	const want = `warning  probe   what was seen, in more
                 words than a line has
           why   because
           cure  a-word-that-is-longer-than-a-line
                 and more
           type  a command that is never wrapped
`
	var b bytes.Buffer
	err := WriteText(&b, []Result{{
		Check: "probe", Status: Warning, Saw: "what was seen, in more words than a line has", Why: "because",
		Cure: "a-word-that-is-longer-than-a-line and more", Commands: []string{"a command that is never wrapped"},
	}}, Layout{Width: 41})
	if diff := cmp.Diff(want, b.String()); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestWriteJSON(t *testing.T) {
	const want = `{
  "status": "failure",
  "checks": [
    {
      "check": "loop",
      "tunnel": "tun01",
      "status": "failure",
      "saw": "a -> b",
      "why": "it is lost",
      "commands": [
        "ip route replace"
      ]
    }
  ]
}
`
	var b bytes.Buffer
	err := WriteJSON(&b, []Result{{
		Check: "loop", Tunnel: "tun01", Status: Failure, Saw: "a -> b", Why: "it is lost", Commands: []string{"ip route replace"},
	}})
	if diff := cmp.Diff(want, b.String()); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

// What the kernel of a test has no module for.
func TestModule(t *testing.T) {
	for found, want := range map[string]Result{
		"":                      {Saw: "nothing else here answers ipip packets"},
		"tunnel4":               {Status: Failure, Commands: []string{"rmmod tunnel4"}},
		"tunnel4, for ipip,sit": {Status: Failure, Commands: []string{"rmmod ipip sit tunnel4"}},
		"sit, of link sit0":     {Status: Failure},
	} {
		got := moduleResult(found)[0]
		if got.Status != want.Status || !cmp.Equal(got.Commands, want.Commands) || !strings.Contains(got.Saw, found) || got.Status != OK && got.Why == "" {
			t.Errorf("%q: %+v, want %+v", found, got, want)
		}
	}
}
