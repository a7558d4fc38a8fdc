//go:build linux

package deploy_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

// commands are the indented lines of a section of docs/install.md; of that about Debian only the first
// ones, which install, because the others are for later.
func commands(t *testing.T, section string) (lines []string) {
	t.Helper()
	_, text, ok := strings.Cut(read(t, "docs/install.md"), "\n## "+section+"\n")
	if !ok {
		t.Fatalf("docs/install.md has no section %s", section)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	for line := range strings.Lines(text) {
		if command, ok := strings.CutPrefix(line, "    "); ok {
			lines = append(lines, strings.TrimSpace(command))
		} else if len(lines) > 0 && strings.TrimSpace(line) != "" && section == "Debian, Ubuntu" {
			break
		}
	}
	return lines
}

// TestInstallDocs holds docs/install.md to what is there. Its commands for Debian are run by TestPackages.
func TestInstallDocs(t *testing.T) {
	makefile := read(t, "Makefile")
	for _, line := range commands(t, "From source") {
		target, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(line, "make"), " "), " ")
		if target != "" && !strings.Contains(target, "=") && !strings.Contains(makefile, "\n"+target+":") {
			t.Errorf("%s: no such target", line)
		}
	}
	doc := read(t, "docs/install.md")
	for _, variable := range regexp.MustCompile(`\b([A-Z]+)="?[^ ]`).FindAllStringSubmatch(doc, -1) {
		if !strings.Contains(makefile+read(t, "deploy/package/build"), variable[1]) {
			t.Errorf("nothing reads %s", variable[1])
		}
	}
	for _, path := range regexp.MustCompile(`\bdeploy/[a-zA-Z./]+[a-z]`).FindAllString(doc, -1) {
		read(t, path)
	}
	packaged := read(t, "deploy/testdata/deb.txt")
	for _, path := range regexp.MustCompile("`(/usr/[^`]+)`").FindAllStringSubmatch(doc, -1) {
		if !strings.Contains(packaged, path[1]) {
			t.Errorf("the package has no %s", path[1])
		}
	}
	// Podman and Compose run it alike.
	service := documents(t, "deploy/compose.yaml")[0]
	run := commands(t, "In a container")[1]
	for _, want := range []string{
		"--cap-add " + strings.Join(words(t, service, "services", "goipip", "cap_add"), ","),
		"--device " + words(t, service, "services", "goipip", "devices")[0],
		"-v " + words(t, service, "services", "goipip", "volumes")[0],
		"--read-only",
	} {
		if !strings.Contains(run, want) {
			t.Errorf("%s: no %s", run, want)
		}
	}
	user := "USER " + at[string](t, service, "services", "goipip", "user")
	if !slices.Contains(strings.Split(read(t, "deploy/Containerfile"), "\n"), user) {
		t.Errorf("deploy/Containerfile: no %s", user)
	}
}
