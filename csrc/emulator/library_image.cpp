#include "emulator/library_image.h"

#include <elf.h>
#include <link.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

namespace fastdiff::emulator {

namespace {

constexpr uintptr_t kSharedAlignment = 65536;  // as device.h gives to __shared__ variables

struct LoadedLibrary {
  std::string path;
  LibraryImage image;
};

// dl_iterate_phdr callback: fills `result` and stops when `info` is the library that holds this function.
int visit_library(dl_phdr_info* info, size_t, void* result) {
  const auto self = reinterpret_cast<uintptr_t>(&visit_library);
  LoadedLibrary loaded;
  bool is_this_library = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const ElfW(Phdr) & segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const uintptr_t begin = info->dlpi_addr + segment.p_vaddr;
    const uintptr_t end = begin + segment.p_memsz;
    is_this_library |= begin <= self && self < end;
    if (!(segment.p_flags & PF_W)) {
      loaded.image.read_only.push_back({reinterpret_cast<const char*>(begin), reinterpret_cast<const char*>(end)});
    }
  }
  if (!is_this_library) return 0;
  loaded.path = info->dlpi_name;
  loaded.image.base = info->dlpi_addr;
  *static_cast<LoadedLibrary*>(result) = loaded;
  return 1;
}

// A __shared__ variable is a local static of a function (its mangled name begins with _ZZ) with the marking alignment.
bool is_shared_variable(const ElfW(Sym) & symbol, const char* name) {
  return ELF64_ST_TYPE(symbol.st_info) == STT_OBJECT && symbol.st_shndx != SHN_UNDEF && symbol.st_size > 0 &&
         symbol.st_value % kSharedAlignment == 0 && std::strncmp(name, "_ZZ", 3) == 0;
}

std::vector<MemoryRange> read_shared_variables(const std::string& path, uintptr_t base) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  if (bytes.size() < sizeof(ElfW(Ehdr))) throw std::runtime_error("cannot read the emulator library " + path);

  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  std::vector<MemoryRange> variables;
  bool has_symbols = false;
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    has_symbols = true;
    const auto* symbols = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (size_t s = 0; s < sections[i].sh_size / sizeof(ElfW(Sym)); ++s) {
      if (!is_shared_variable(symbols[s], names + symbols[s].st_name)) continue;
      const auto* begin = reinterpret_cast<const char*>(base + symbols[s].st_value);
      variables.push_back({begin, begin + symbols[s].st_size});
    }
  }
  if (!has_symbols) throw std::runtime_error("the emulator library " + path + " has no symbol table");
  return variables;
}

LibraryImage read_library_image() {
  LoadedLibrary loaded;
  dl_iterate_phdr(visit_library, &loaded);
  loaded.image.shared_variables = read_shared_variables(loaded.path, loaded.image.base);
  return loaded.image;
}

}  // namespace

const LibraryImage& library_image() {
  static const LibraryImage image = read_library_image();
  return image;
}

}  // namespace fastdiff::emulator
