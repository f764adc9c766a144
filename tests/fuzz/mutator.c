/* Linked with libFuzzer, which calls this instead of its own mutations, if there is such a function: half of the time
 * a function of Python's is asked. */
#include <stddef.h>
#include <stdint.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

size_t (*ek_mutate)(uint8_t *data, size_t size, size_t most, unsigned seed);

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed)
{
    if (ek_mutate == NULL || seed % 2)
        return LLVMFuzzerMutate(data, size, most);
    return ek_mutate(data, size, most, seed / 2);
}
