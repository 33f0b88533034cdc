// A PrivateUse1 device whose memory is the host's: storage and views of its own, everything else runs on the CPU through
// PyTorch's fallback, and is counted. Compiled by __init__.py of this folder.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/extension.h>

#include <map>
#include <mutex>
#include <string>

namespace {

constexpr auto NPU = c10::DeviceType::PrivateUse1;
const c10::Device kDevice(NPU, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// What happened on the device: operators that fell back, copies to the host, scalars read by the host.
std::mutex lock;
std::map<std::string, int64_t> events;
thread_local int falling_back = 0;  // the fallback's own copies are no events

void note(const std::string& name) {
  std::lock_guard<std::mutex> guard(lock);
  ++events[name];
}

struct Memory final : c10::Allocator {
  static void release(void* data) {
    c10::GetCPUAllocator()->raw_deallocate(data);
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes ? c10::GetCPUAllocator()->raw_allocate(bytes) : nullptr;
    return {data, data, bytes ? &release : &c10::detail::deleteNothing, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &release;
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};
Memory memory;

// One device, one stream, nothing asynchronous.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return NPU;
  }
  c10::Device exchangeDevice(c10::Device) const override {
    return kDevice;
  }
  c10::Device getDevice() const override {
    return kDevice;
  }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::DEFAULT, device);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return stream;
  }
  c10::DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  bool queryStream(const c10::Stream&) const override {
    return true;
  }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override {
    return true;
  }
  bool isAvailable() const override {
    return true;
  }
  bool hasPrimaryContext(c10::DeviceIndex) const override {
    return true;
  }
  c10::DeviceIndex deviceCount() const override {
    return 1;
  }
  c10::DeviceIndex getCurrentDevice() const override {
    return 0;
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override {
    return 0;
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
  at::Generator getNewGenerator(c10::DeviceIndex) const override {
    return at::detail::createCPUGenerator();
  }
};

// The same bytes as a CPU tensor.
at::Tensor on_host(const at::Tensor& tensor) {
  if (tensor.device().type() != NPU) {
    return tensor;
  }
  auto* impl = tensor.storage().unsafeGetStorageImpl();
  c10::Storage storage(c10::Storage::use_byte_size_t{}, impl->nbytes(),
                       c10::DataPtr(impl->mutable_data(), c10::Device(c10::DeviceType::CPU)));
  auto view = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
  view.unsafeGetTensorImpl()->set_storage_offset(tensor.storage_offset());
  view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides());
  return view;
}

// Poisoned as PyTorch's own devices poison it, in its deterministic mode; an extension may know nothing of that.
bool poisons = true;

at::Tensor poisoned(at::Tensor tensor) {
  const auto& context = at::globalContext();
  if (poisons && context.deterministicAlgorithms() && context.deterministicFillUninitializedMemory()) {
    auto view = on_host(tensor);
    at::native::fill_empty_deterministic_(view);
  }
  return tensor;
}

at::Tensor empty(c10::SymIntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return poisoned(at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory, kKeys,
                                            dtype.value_or(at::kFloat), format));
}

at::Tensor empty_strided(c10::SymIntArrayRef size, c10::SymIntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return poisoned(at::detail::empty_strided_generic(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride),
                                                    &memory, kKeys, dtype.value_or(at::kFloat)));
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& target, bool) {
  if (target.device().type() != NPU && !falling_back) {
    note("copy to the host");
  }
  on_host(target).copy_(on_host(self));
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& target) {
  if (target.sizes() != self.sizes()) {
    target.resize_(self.sizes());
  }
  on_host(target).copy_(on_host(self));
  return target;
}

const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size, std::optional<at::MemoryFormat>) {
  auto* impl = self.unsafeGetTensorImpl();
  auto sizes = C10_AS_INTARRAYREF_SLOW(size);
  auto bytes = (c10::multiply_integers(sizes) + self.storage_offset()) * self.element_size();
  auto* storage = self.storage().unsafeGetStorageImpl();
  if (storage->nbytes() < static_cast<size_t>(bytes)) {
    auto larger = memory.allocate(bytes);
    if (storage->nbytes()) {
      std::memcpy(larger.get(), storage->data(), storage->nbytes());
    }
    storage->set_data_ptr(std::move(larger));
    storage->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(sizes);
  return self;
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  auto start = offset ? std::optional<int64_t>(offset->expect_int()) : std::nullopt;
  return at::native::as_strided_tensorimpl(self, C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), start);
}

at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}

at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
  return as_strided(self, size, stride, self.sym_storage_offset());
}

at::Scalar local_scalar(const at::Tensor& self) {
  note("scalar read by the host");
  return on_host(self).item();
}

at::Tensor& set_part(at::Tensor& self, at::Storage source, c10::SymInt offset, c10::SymIntArrayRef size,
                     c10::SymIntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset.expect_int());
  impl->set_sizes_and_strides(C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride));
  return self;
}

at::Tensor& set_whole(at::Tensor& self, at::Storage source) {
  int64_t count = source.nbytes() / self.element_size();
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(0);
  impl->set_sizes_contiguous({count});
  return self;
}

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  note(op.schema().name());
  ++falling_back;
  try {
    at::native::cpu_fallback(op, stack);
  } catch (...) {
    --falling_back;
    throw;
  }
  --falling_back;
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("resize_", &resize);
  library.impl("as_strided", &as_strided);
  library.impl("view", &view);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("_local_scalar_dense", &local_scalar);
  library.impl("set_.source_Storage", &set_whole);
  library.impl("set_.source_Storage_storage_offset", &set_part);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

PYBIND11_MODULE(portable_gla_fake_npu, module) {
  static Hooks hooks;
  c10::SetAllocator(NPU, &memory);
  at::RegisterPrivateUse1HooksInterface(&hooks);
  module.def("events", [] {
    std::lock_guard<std::mutex> guard(lock);
    return events;
  });
  module.def("set_poisons", [](bool value) { poisons = value; });
  module.def("forget_events", [] {
    std::lock_guard<std::mutex> guard(lock);
    events.clear();
  });
}
