package settings

import (
	"fmt"
	"strings"
)

// Reference returns the tables of docs/configuration.md in Markdown: every name that
// kvd knows.
func Reference() string {
	var t strings.Builder
	t.WriteString("### Settings\n\n| flag and key | variable | value | default | also | meaning |\n|---|---|---|---|---|---|\n")
	for i := range table {
		row := &table[i]
		def := row.def
		if def == "" {
			def = "–"
		}
		variable := "`" + row.env() + "`"
		if row.secret {
			variable += ", `" + row.env() + fileSuffix + "`"
		}
		fmt.Fprintf(&t, "| `%s` | %s | %s | %s | %s | %s |\n", row.name, variable, cell(row.kind), cell(def), cell(row.otherNames()), cell(row.help))
	}
	t.WriteString("\n### Flags of etcd that have no effect\n\nkvd accepts these with the values listed and refuses any other value.\n\n| flag | accepted | reason |\n|---|---|---|\n")
	for _, i := range ignoredNames {
		values := "any value"
		switch {
		case i.bare != "":
			values = "true, false"
		case i.values != nil:
			values = strings.Join(i.values, ", ")
		}
		fmt.Fprintf(&t, "| `%s` | %s | %s |\n", i.name, cell(values), cell(i.reason))
	}
	t.WriteString("\n### Flags of etcd that are refused\n\n| flag | reason | instead |\n|---|---|---|\n")
	for _, r := range refusals {
		fmt.Fprintf(&t, "| `%s` | %s | %s |\n", strings.Join(r.names, "`, `"), cell(r.reason), cell(r.instead))
	}
	return t.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// otherNames returns the aliases of the setting.
func (s *setting) otherNames() string {
	var names []string
	for _, a := range aliases {
		if a.setting == s.name {
			names = append(names, "`"+a.name+"`")
		}
	}
	return strings.Join(names, ", ")
}
