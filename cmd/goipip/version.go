//go:build linux

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// release is the version of a package, which the linker sets: -ldflags "-X main.release=1.2.3".
var release string

// version is the version, and the commit where the build knows it.
func version() string {
	b := readBuild()
	commit := b.Commit[:min(len(b.Commit), 12)]
	if strings.Contains(b.Version, commit) { // a pseudo-version ends with it
		return b.Version
	}
	return b.Version + " " + commit
}

// build is what goipip version says.
type build struct {
	Version  string `json:"version"` // of the package, or else of the module
	Commit   string `json:"commit,omitempty"`
	Time     string `json:"time,omitempty"` // of the commit, as in RFC 3339
	Modified bool   `json:"modified"`       // the source was not that of the commit
	Go       string `json:"go"`
	Platform string `json:"platform"` // GOOS/GOARCH
	Kernel   string `json:"kernel"`   // the release of the one that runs
	Needs    []need `json:"needs"`
}

// need is what some part of goipip takes.
type need struct {
	For    string `json:"for"`
	Kernel string `json:"kernel"` // the oldest one
	And    string `json:"and"`
}

// needs say why in their sources: SO_MEMINFO in rawsock/meminfo_linux.go, NeedsGuard in
// rawsock/receiver.go, TUN_F_USO4 in tun/tun.go, and the programs of internal/fastpath.
var needs = []need{
	{"tunnels", "4.12", "/dev/net/tun, CAP_NET_ADMIN, CAP_NET_RAW"},
	{"overload without a second socket", "5.11", "CAP_BPF in the initial user namespace"},
	{"superpackets of UDP", "6.2", ""},
	{"--fast-path", "6.6", "CAP_BPF in the initial user namespace"},
}

func readBuild() build {
	b := build{Version: release, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, Needs: needs}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		b.Version = cmp.Or(b.Version, "unknown")
		return b
	}
	b.Version = cmp.Or(b.Version, info.Main.Version)
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.time":
			b.Time = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	return b
}

// write writes b as a table.
func (b build) write(out io.Writer) error {
	commit := cmp.Or(b.Commit, "unknown")
	if b.Time != "" {
		commit += ", " + b.Time
	}
	if b.Modified {
		commit += ", modified"
	}
	text := fmt.Sprintf("goipip  %s\ncommit  %s\ngo      %s %s\nkernel  Linux %s\n", b.Version, commit, b.Go, b.Platform, b.Kernel)
	title := "needs"
	for _, n := range b.Needs {
		line := fmt.Sprintf("Linux %s for %s", n.Kernel, n.For)
		if n.And != "" {
			line += ", with " + n.And
		}
		text += fmt.Sprintf("%-7s %s\n", title, line)
		title = ""
	}
	_, err := io.WriteString(out, text)
	return err
}

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show version, commit, Go, and the kernel that goipip needs",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b := readBuild()
			var uname unix.Utsname
			if err := unix.Uname(&uname); err != nil {
				return fmt.Errorf("uname: %w", err)
			}
			b.Kernel = unix.ByteSliceToString(uname.Release[:])
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(b)
			}
			return b.write(cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print a JSON object")
	return cmd
}
