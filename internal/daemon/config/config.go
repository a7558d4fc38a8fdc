// Package config reads the configuration of many tunnels from TOML files, and has
// the notation of settings that the files share with the command line.
//
// It reads strictly: what it does not know, or what two tunnels cannot both have, is
// an error with its position, and Read returns all errors of all files.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"goipip/internal/tunnel"
)

// File is a configuration: one file, or all files of a directory.
type File struct {
	LogLevel  string // one of LogLevels; empty if no file says
	LogFormat string // one of LogFormats; empty if no file says
	Metrics   string // address and port of the metrics, as from ParseListen; empty if no file says
	Tunnels   []Tunnel
}

// Tunnel is one table [tunnel.NAME].
type Tunnel struct {
	Config    tunnel.Config  // validated
	Addresses []netip.Prefix // inner addresses of this end beside Config.Address, each with its prefix length
	Routes    []Route        // by the link

	File string // where the table begins
	Line int
}

// Between returns t with the addresses of those of its ends that are names.
func (t Tunnel) Between(local, remote netip.Addr) Tunnel {
	if t.Config.LocalDevice != "" {
		t.Config.Local = local
	}
	if t.Config.RemoteName != "" {
		t.Config.Remote = remote
	}
	return t
}

// Route is a route by the tunnel's link.
type Route struct {
	To     netip.Prefix // masked
	Metric int          // 0 to 2147483647, 0 is Linux's default
	Table  int          // 1 to 2147483647; 0 is the main table
}

// Error is something wrong at one place of a configuration.
type Error struct {
	File         string
	Line, Column int    // from 1, the column in bytes; 0 for the configuration as a whole
	Key          string // such as tunnel.tun01.mtu; empty where there is none
	Problem      string // what is wrong, and how to mend it
}

func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Problem
}

// Read reads the file path, or the files *.toml of the directory path in the order
// of their names, as one configuration. A file that cannot be read is an
// *fs.PathError, anything else that is wrong an *Error. Read joins all of them
// (errors.Join), sorted by file and position.
func Read(path string) (*File, error) {
	names, err := files(path)
	if err != nil {
		return nil, err
	}
	r := newReader()
	var unread []error
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			unread = append(unread, err)
			continue
		}
		r.read(parse(name, data))
	}
	if len(r.errs)+len(unread)+len(r.file.Tunnels) == 0 {
		r.errs = append(r.errs, &Error{File: path, Problem: "no tunnel: add a table [tunnel.NAME] with the keys local and remote"})
	}
	slices.SortStableFunc(r.errs, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	for _, e := range r.errs {
		unread = append(unread, e)
	}
	if len(unread) > 0 {
		return nil, errors.Join(unread...)
	}
	return &r.file, nil
}

// files returns path, or the files of the directory path. As in a shell, *.toml does
// not match names with a dot in front, such as an editor's lock files.
func files(path string) ([]string, error) {
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return []string{path}, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".toml" && e.Name()[0] != '.' && !e.IsDir() {
			names = append(names, filepath.Join(path, e.Name()))
		}
	}
	if len(names) == 0 {
		return nil, &Error{File: path, Problem: "no file *.toml in this directory: add one with a table [tunnel.NAME]"}
	}
	return names, nil
}
