//go:build linux

package deploy_test

import (
	"bytes"
	"debug/buildinfo"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"goipip/internal/netlab/labtest"
)

var update = flag.Bool("update", false, "write the lists of what packages contain")

// TestPackages builds packages as a release does, and looks at them, installs, upgrades and removes them.
func TestPackages(t *testing.T) {
	labtest.Need(t, "make", "dpkg", "nfpm")
	source := copySource(t, root, filepath.Join(t.TempDir(), "goipip"))
	source.packages(t, "0.1.0", "deb rpm")

	t.Run("Reproducible", func(t *testing.T) {
		t.Parallel()
		other := copySource(t, string(source), filepath.Join(t.TempDir(), "a", "place", "with-a-longer-name"))
		other.packages(t, "0.1.0", "deb rpm")
		for _, name := range []string{deb("0.1.0"), rpm("0.1.0")} {
			a, b := source.file(t, "dist/"+name), other.file(t, "dist/"+name)
			if !bytes.Equal(a, b) {
				t.Errorf("%s: %d and %d bytes that differ from %d on", name, len(a), len(b), differ(a, b))
			}
		}
	})
	t.Run("Program", func(t *testing.T) {
		path := filepath.Join(string(source), "dist/stage", runtime.GOARCH, "goipip")
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		settings := map[string]string{}
		for _, s := range info.Settings {
			settings[s.Key] = s.Value
		}
		if settings["CGO_ENABLED"] != "0" || settings["-trimpath"] != "true" || settings["vcs.modified"] != "false" {
			t.Errorf("built with %v", settings)
		}
		if out := run(t, "", path, "version"); !strings.HasPrefix(out, "goipip  0.1.0\ncommit  "+settings["vcs.revision"]+", 2023-11-14T22:13:20Z\n") {
			t.Errorf("goipip version:\n%s", out)
		}
	})
	t.Run("Deb", func(t *testing.T) {
		golden(t, "deb.txt", run(t, string(source), "dpkg-deb", "-f", "dist/"+deb("0.1.0"))+"\n"+debFiles(t, source))
	})
	t.Run("RPM", func(t *testing.T) {
		golden(t, "rpm.txt", rpmFiles(t, source.file(t, "dist/"+rpm("0.1.0"))))
	})
	t.Run("Licenses", func(t *testing.T) {
		text := run(t, string(source), "gzip", "-dc", "dist/stage/licenses.gz")
		for _, want := range []string{"==== Go\n", "==== github.com/spf13/cobra v", "==== github.com/songgao/water v"} {
			if !strings.Contains(text, want) {
				t.Errorf("licenses.gz has no %q", want)
			}
		}
	})
	t.Run("Dpkg", func(t *testing.T) {
		t.Parallel()
		testDpkg(t, source)
	})
	t.Run("Lintian", func(t *testing.T) {
		labtest.Need(t, "lintian")
		if out := run(t, string(source), "lintian", "--allow-root", "--fail-on", "error,warning", "dist/"+deb("0.1.0")); out != "" {
			t.Errorf("lintian:\n%s", out)
		}
	})
	t.Run("RPMTools", func(t *testing.T) {
		labtest.Need(t, "rpm")
		db := t.TempDir()
		for _, args := range []string{"-qlp", "-Kv --nosignature", "-i --nodeps --noscripts --test --root=" + db} {
			run(t, string(source), "rpm", append(strings.Fields(args), "dist/"+rpm("0.1.0"))...)
		}
	})
	t.Run("Completion", func(t *testing.T) {
		dir := filepath.Join(string(source), "dist/stage/completion")
		t.Setenv("PATH", filepath.Join(string(source), "dist/stage", runtime.GOARCH)+":"+os.Getenv("PATH"))
		for shell, complete := range map[string]string{
			// In place of the function that bash-completion has.
			"bash": `_init_completion() { words=("${COMP_WORDS[@]}") cword=$COMP_CWORD cur=${COMP_WORDS[COMP_CWORD]}; }
				source ./bash; COMP_WORDS=(goipip tunnel add x dev "") COMP_CWORD=5 COMP_TYPE=9
				__start_goipip 2>/dev/null; printf '%s\n' "${COMPREPLY[@]}"`,
			"fish": `source ./fish; complete -C "goipip tunnel add x dev "`,
			"zsh": `compdef() { }; compadd() { }; _describe() { print -l ${(P)2} }
				source ./zsh; words=(goipip tunnel add x dev "") CURRENT=6; _goipip`,
		} {
			t.Run(shell, func(t *testing.T) {
				if shell != "bash" {
					labtest.Need(t, shell)
				}
				if out := run(t, dir, shell, "-c", complete); !slices.Contains(strings.Fields(out), "lo") {
					t.Errorf("%s offers %q, and not lo", shell, out)
				}
			})
		}
	})
	t.Run("Release", func(t *testing.T) {
		labtest.Need(t, "arm64")
		other := copySource(t, string(source), filepath.Join(t.TempDir(), "other"))
		run(t, string(source), "make", "release", "VERSION=0.1.0")
		run(t, string(other), "make", "packages", "VERSION=0.1.0", "ARCHS=arm64")
		for _, name := range []string{"goipip_0.1.0_arm64.deb", "goipip-0.1.0-1.aarch64.rpm"} {
			if !bytes.Equal(source.file(t, "dist/release/"+name), other.file(t, "dist/"+name)) {
				t.Errorf("%s is not reproducible", name)
			}
		}
		release := filepath.Join(string(source), "dist/release")
		if out := run(t, release, "sha256sum", "-c", "SHA256SUMS"); strings.Count(out, ": OK\n") != 8 {
			t.Errorf("checksums of 2 × (deb, rpm, program, modules):\n%s", out)
		}
		if modules := source.file(t, "dist/release/goipip-linux-arm64.cdx.json"); !bytes.Contains(modules, []byte(`"purl": "pkg:golang/github.com/spf13/cobra@v`)) {
			t.Error("the list of modules lacks cobra")
		}
	})
}

// tree is the directory of a copy of the project's source.
type tree string

// copySource makes dir a repository with the project's files as they are below root, in one commit,
// which is the same wherever and whenever it is made.
func copySource(t *testing.T, root, dir string) tree {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case name == ".git" || name == "dist":
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case e.IsDir():
			return os.MkdirAll(filepath.Join(dir, name), 0o755)
		case !e.Type().IsRegular() || name == "goipip": // which make has built
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name), b, info.Mode())
	})
	if err != nil {
		t.Fatal(err)
	}
	const date = "@1700000000 +0000"
	run(t, dir, "git", "init", "-q")
	run(t, dir, "git", "add", ".")
	run(t, dir, "env", "GIT_AUTHOR_DATE="+date, "GIT_COMMITTER_DATE="+date,
		"git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "test")
	return tree(dir)
}

// packages runs make packages for this machine's architecture.
func (s tree) packages(t *testing.T, version, formats string) {
	t.Helper()
	run(t, string(s), "make", "packages", "VERSION="+version, "FORMATS="+formats, "ARCHS="+runtime.GOARCH)
}

func (s tree) file(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(string(s), name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func deb(version string) string { return fmt.Sprintf("goipip_%s_%s.deb", version, runtime.GOARCH) }

func rpm(version string) string {
	arch := map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH]
	return fmt.Sprintf("goipip-%s-1.%s.rpm", version, arch)
}

// differ returns the index of the first byte in which a and b differ.
func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// golden compares a description of a package with what testdata has. Manual pages are left out if each
// page of docs/man is there, since their test has them; so are sizes and architecture.
func golden(t *testing.T, name, got string) {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(root, "docs/man/*.[58]"))
	if err != nil || len(pages) == 0 {
		t.Fatalf("docs/man: %v", err)
	}
	for _, page := range pages {
		base := filepath.Base(page)
		line := fmt.Sprintf("-rw-r--r-- /usr/share/man/man%s/%s.gz\n", base[len(base)-1:], base)
		if !strings.Contains(got, line) {
			t.Errorf("%s: no %s", name, line)
		}
		got = strings.Replace(got, line, "", 1)
	}
	got = regexp.MustCompile(`(?m)^Installed-Size: .*\n`).ReplaceAllString(got, "")
	got = regexp.MustCompile(`(?m)^Architecture: .*$`).ReplaceAllString(got, "Architecture: any")
	labtest.Golden(t, filepath.Join("testdata", name), got, *update, "./deploy -run TestPackages -update")
}

// debFiles lists the files of a .deb: mode, path, and whether dpkg asks before it replaces them.
func debFiles(t *testing.T, source tree) string {
	t.Helper()
	path := "dist/" + deb("0.1.0")
	conffiles := strings.Fields(run(t, string(source), "dpkg-deb", "-I", path, "conffiles"))
	var lines []string
	for line := range strings.Lines(run(t, string(source), "dpkg-deb", "-c", path)) {
		fields := strings.Fields(line)
		if fields[1] != "root/root" {
			t.Errorf("not root's: %s", line)
		}
		name := strings.TrimPrefix(fields[5], ".")
		text := fields[0] + " " + name
		if slices.Contains(conffiles, name) {
			text += " conffile"
		}
		// Of directories, only the package's own count.
		if !strings.HasSuffix(name, "/") || strings.Contains(name, "/goipip/") {
			lines = append(lines, text)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n"
}

// rpmFiles lists the files of an .rpm, with flags of RPMFILE_: 1 is a configuration file, 16 one that
// an upgrade leaves as it is.
func rpmFiles(t *testing.T, b []byte) string {
	t.Helper()
	r := bytes.NewReader(b[96:]) // behind the lead
	signature := rpmHeader(t, r)
	if pad := r.Size() - int64(r.Len()); pad%8 != 0 {
		if _, err := r.Seek(8-pad%8, io.SeekCurrent); err != nil {
			t.Fatal(err)
		}
	}
	header := rpmHeader(t, r)
	if len(signature) == 0 {
		t.Error("the package has no digests")
	}
	const ( // RPMTAG_ of rpmtag.h
		name, version, license, recommends, buildHost = 1000, 1001, 1014, 5046, 1007
		postin, preun, postun                         = 1024, 1025, 1026
		modes, flags, dirIndexes, bases, dirs         = 1030, 1037, 1116, 1117, 1118
	)
	text := func(tag int) []string {
		return strings.Split(strings.TrimSuffix(string(header[tag].data), "\x00"), "\x00")
	}
	number := func(tag, i int) int {
		if header[tag].kind == rpmInt16 {
			return int(binary.BigEndian.Uint16(header[tag].data[2*i:]))
		}
		return int(binary.BigEndian.Uint32(header[tag].data[4*i:]))
	}
	for tag, script := range map[int]string{postin: "postinst", preun: "prerm", postun: "postrm"} {
		if got := text(tag)[0]; strings.TrimSpace(got) != strings.TrimSpace(read(t, "deploy/package/"+script)) {
			t.Errorf("%s is %q", script, got)
		}
	}
	var lines []string
	for i, base := range text(bases) {
		mode := fs.FileMode(number(modes, i)) & fs.ModePerm
		if number(modes, i)&0o170000 == 0o040000 {
			mode |= fs.ModeDir
		}
		line := fmt.Sprintf("%v %s%s", mode, text(dirs)[number(dirIndexes, i)], base)
		if f := number(flags, i); f != 0 {
			line += fmt.Sprintf(" flags %d", f)
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	head := fmt.Sprintf("Name: %s\nVersion: %s\nLicense: %s\nRecommends: %s\nBuild Host: %s\n\n", text(name)[0], text(version)[0], text(license)[0], text(recommends)[0], text(buildHost)[0])
	return head + strings.Join(lines, "\n") + "\n"
}

// rpmInt16 and the others are types of values (rpmTagType).
const rpmInt16, rpmString, rpmStrings, rpmI18N = 3, 6, 8, 9

// rpmEntry is the value of a tag.
type rpmEntry struct {
	kind int
	data []byte // from the first element on; of strings, only these
}

// rpmHeader reads a header structure (format.md of rpm, "Header Structure").
func rpmHeader(t *testing.T, r io.Reader) map[int]rpmEntry {
	t.Helper()
	var intro struct{ Magic, Reserved, Entries, Size uint32 }
	if err := binary.Read(r, binary.BigEndian, &intro); err != nil || intro.Magic != 0x8eade801 {
		t.Fatalf("not a header: %#x, %v", intro.Magic, err)
	}
	index := make([]struct{ Tag, Kind, Offset, Count uint32 }, intro.Entries)
	if err := binary.Read(r, binary.BigEndian, index); err != nil {
		t.Fatal(err)
	}
	store := make([]byte, intro.Size)
	if _, err := io.ReadFull(r, store); err != nil {
		t.Fatal(err)
	}
	entries := map[int]rpmEntry{}
	for _, e := range index {
		data := store[e.Offset:]
		if e.Kind == rpmString || e.Kind == rpmStrings || e.Kind == rpmI18N {
			end := 0
			for range e.Count {
				end += bytes.IndexByte(data[end:], 0) + 1
			}
			data = data[:end]
		}
		entries[int(e.Tag)] = rpmEntry{int(e.Kind), data}
	}
	return entries
}
